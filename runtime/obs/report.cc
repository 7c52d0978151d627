#include "runtime/obs/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/obs/run_metrics.h"
#include "runtime/obs/sequence_report.h"
#include "runtime/obs/svg_plot.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string LengthHistogram(const std::vector<json>& records) {
  // Powers of two: lengths have long tails.
  std::map<int, double> count;
  for (const json& r : records) {
    if (!r.contains("lengths")) continue;
    for (const json& length : r["lengths"])
      ++count[static_cast<int>(std::floor(std::log2(std::max(1, length.get<int>()))))];
  }
  if (count.empty()) return "";
  double most = 0;
  for (const auto& [bin, n] : count) most = std::max(most, n);
  const int low = count.begin()->first, high = count.rbegin()->first + 1;
  Plot plot({.low = static_cast<double>(low), .high = static_cast<double>(high)}, {.low = 0, .high = most});
  for (const auto& [bin, n] : count) plot.Bar(bin, bin + 1, 0, n, 0);
  return plot.Figure("Sequences by length", "log2 of tokens", {"sequences"});
}

std::string TimeShares(const std::vector<json>& records) {
  const std::vector<std::pair<const char*, const char*>> parts = {{"forward_seconds", "forward"},
                                                                  {"backward_seconds", "backward"},
                                                                  {"comm_exposed_seconds", "exposed communication"},
                                                                  {"optimizer_seconds", "optimizer"},
                                                                  {"data_seconds", "data"}};
  const size_t bins = std::min<size_t>(80, records.size());
  if (bins == 0) return "";
  const double first = records.front()["step"].get<double>(), last = records.back()["step"].get<double>() + 1;
  Plot plot({.low = first, .high = last}, {.low = 0, .high = 100});
  std::vector<std::string> names;
  for (const auto& [field, name] : parts) names.push_back(name);
  for (size_t b = 0; b < bins; ++b) {
    const size_t begin = records.size() * b / bins, end = records.size() * (b + 1) / bins;
    double total = 0;
    std::vector<double> sums(parts.size());
    for (size_t i = begin; i < end; ++i) {
      total += records[i].value("seconds", 0.0);
      for (size_t p = 0; p < parts.size(); ++p) sums[p] += records[i].value(parts[p].first, 0.0);
    }
    double at = 0;
    for (size_t p = 0; p < parts.size() && total > 0; ++p) {
      const double share = 100 * sums[p] / total;
      plot.Bar(first + (last - first) * static_cast<double>(b) / static_cast<double>(bins),
               first + (last - first) * static_cast<double>(b + 1) / static_cast<double>(bins), at,
               std::min(100.0, at + share), p);
      at += share;
    }
  }
  return plot.Figure("Share of the step, %", "step", names);
}

// Whether all that is shown of a plan of gradient codes is there.
bool IsCompressionPlan(const json& plan) {
  for (const char* number :
       {"first_step", "bytes", "plain_bytes", "uniform_bytes", "relative_error", "relative_budget"})
    plan.value(number, 0.0);
  for (const char* names : {"layers", "codecs"}) plan.at(names).get<std::vector<std::string>>();
  plan.at("bits_per_element").get<std::vector<double>>();
  return true;
}

// Which layer travelled in how many bits per element, plan by plan: darker is more. Of plans/compression.jsonl.
std::string CompressionMap(const JsonLines& lines, double last_step) {
  std::map<double, json> plans;  // by first step; of a resumed run the later line counts
  for (const json& plan : lines.whole) plans[plan.value("first_step", 0.0)] = plan;
  const std::string note = lines.Note("plans/compression.jsonl");
  if (plans.empty()) return note;
  const double first = plans.begin()->first, span = std::max(1.0, last_step + 1 - first);
  constexpr double kWidth = 900, kLeft = 240, kRow = 11;
  const json& layers = plans.begin()->second.at("layers");
  const double height = kRow * static_cast<double>(layers.size()) + 20;
  std::string svg;
  for (size_t l = 0; l < layers.size(); ++l) {
    absl::StrAppendFormat(&svg, "<text x=\"%g\" y=\"%g\" font-size=\"9\" text-anchor=\"end\">%s</text>", kLeft - 6,
                          kRow * static_cast<double>(l + 1) - 2, MarkupEscape(layers[l].get<std::string>()));
  }
  for (auto at = plans.begin(); at != plans.end(); ++at) {
    const auto next = std::next(at);
    const double x0 = kLeft + (kWidth - kLeft) * (at->first - first) / span,
                 x1 = kLeft + (kWidth - kLeft) * ((next == plans.end() ? last_step + 1 : next->first) - first) / span;
    const json &bits = at->second.at("bits_per_element"), &codecs = at->second.at("codecs");
    for (size_t l = 0; l < bits.size() && l < codecs.size() && l < layers.size(); ++l) {
      const double b = bits[l].get<double>(), shade = std::clamp(std::log2(1 + b) / std::log2(33.0), 0.03, 1.0);
      absl::StrAppendFormat(&svg,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%g\" fill=\"currentColor\" "
                            "fill-opacity=\"%.2f\"><title>%s"
                            ": %s, %.2f bits, from step %g</title></rect>",
                            x0, kRow * static_cast<double>(l), std::max(0.5, x1 - x0), kRow - 1, shade,
                            MarkupEscape(layers[l].get<std::string>()), MarkupEscape(codecs[l].get<std::string>()), b,
                            at->first);
    }
  }
  absl::StrAppendFormat(
      &svg,
      "<text x=\"%g\" y=\"%g\" font-size=\"10\">step %g</text><text x=\"%g\" y=\"%g\" font-size=\"10\" "
      "text-anchor=\"end\">step %g</text>",
      kLeft, height - 4, first, kWidth, height - 4, last_step);
  return absl::StrFormat(
      "<h2>Gradient codes: bits per element, layer by step</h2><svg viewBox=\"0 0 %g %g\" role=\"img\" "
      "aria-label=\"bits per element of each layer's gradient code\">%s</svg>%s\n",
      kWidth, height, svg, note);
}

// What reducing gradients took, and codes cost, over the last tenth of the steps.
template <class Row>
void ReductionRows(const std::vector<json>& records, Row row) {
  double bytes = 0, error = 0, predicted = 0, measured = 0;
  int64_t steps = 0, errors = 0, predictions = 0;
  for (size_t i = records.size() - std::max<size_t>(1, records.size() / 10); i < records.size(); ++i) {
    const json& r = records[i];
    if (!r.contains("reduced_bytes")) continue;
    ++steps;
    bytes += r["reduced_bytes"].get<double>();
    measured += r.value("reduce_exposed_seconds", 0.0);
    if (r.contains("codec_error") && r["codec_error"].is_number()) {
      ++errors;
      error += r["codec_error"].get<double>();
    }
    if (r.contains("reduce_predicted_seconds")) {
      ++predictions;
      predicted += r["reduce_predicted_seconds"].get<double>();
    }
  }
  if (steps == 0) return;
  const auto n = static_cast<double>(steps);
  row("gradients sent by a rank and step", HumanBytes(bytes / n));
  if (errors > 0) row("relative error of codes", absl::StrFormat("%.4f", error / static_cast<double>(errors)));
  row("exposed reduction, measured / predicted",
      absl::StrFormat("%.1f ms / %s", 1e3 * measured / n,
                      predictions > 0 ? absl::StrFormat("%.1f ms", 1e3 * predicted / static_cast<double>(predictions))
                                      : "not predicted"));
}

constexpr double kGiB = 1 << 30;
constexpr LineFigureOptions kFromZero{.floor = LineFigureOptions::Floor::kZero};

std::string Head(const std::string& title) {
  return absl::StrCat(
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>",
      MarkupEscape(title), "</title>", PlotStyle(), "<h1>", MarkupEscape(title), "</h1>");
}

// The series where records have this field, else nothing.
Series OnlyWith(const std::vector<json>& records, const char* field, Series series) {
  if (!records.back().contains(field)) series.points.clear();
  return series;
}

std::string ReadOrEmpty(const std::string& path) {
  auto text = PosixFiles().Read(path);
  return text.ok() ? *text : std::string();
}

std::string RateTitle(const std::string& unit) { return unit == "images" ? "Images per second" : "Tokens per second"; }

std::string Loss(double loss) {
  if (!std::isfinite(loss)) return "-";
  return std::abs(loss) < 1e5 ? absl::StrFormat("%.4f", loss) : absl::StrFormat("%.3g", loss);
}

// At most `most` bytes, so that one long reason does not stretch a table; whole characters.
std::string Shortened(const std::string& text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80) --most;
  return text.substr(0, most) + "...";
}

// The names by which runs differ: their paths without the folders that all share.
std::vector<std::string> ShortNames(const std::vector<std::string>& paths) {
  size_t shared = paths[0].rfind('/');
  shared = shared == std::string::npos ? 0 : shared + 1;
  for (const std::string& path : paths) {
    size_t same = 0, folder = 0;
    while (same < shared && same < path.size() && path[same] == paths[0][same]) {
      if (path[same++] == '/') folder = same;
    }
    shared = folder;
  }
  std::vector<std::string> names;
  for (const std::string& path : paths) names.push_back(path.substr(shared));
  return names;
}

std::string FinalValue(const RunSummary& s, size_t series, const std::string& name, const std::string& state) {
  std::string row = absl::StrCat("<tr><td>", Swatch(series), MarkupEscape(name), "</td>");
  const auto cell = [&row](const std::string& value) { absl::StrAppend(&row, "<td>", MarkupEscape(value), "</td>"); };
  cell(Shortened(state, 48));
  cell(absl::StrCat(s.steps));
  for (const double loss : {s.end_loss, s.held_out, s.best_held_out}) cell(Loss(loss));
  cell(std::isfinite(s.accuracy) ? absl::StrFormat("%.2f %%", 100 * s.accuracy) : "-");
  cell(HumanDuration(s.seconds));
  cell(std::isfinite(s.rate) ? absl::StrCat(HumanCount(s.rate), " ", s.unit, "/s") : "-");
  return row + "</tr>";
}

}  // namespace

absl::Status WriteReport(const std::string& run_dir, const std::string& out) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<json> records, ReadMetrics(run_dir));
  const auto read = [&](const char* name) { return ReadOrEmpty(run_dir + "/" + name); };
  const RunSummary summary = Summarise(records);
  const json& last = records.back();
  std::string rows;
  const auto row = [&](const std::string& name, const std::string& value) {
    absl::StrAppend(&rows, "<tr><td>", MarkupEscape(name), "</td><td>", MarkupEscape(value), "</td></tr>");
  };
  row("state", read("state"));
  row("steps", absl::StrCat(summary.steps));
  if (std::isfinite(summary.last_loss)) row("last loss", Loss(summary.last_loss));
  if (std::isfinite(summary.held_out))
    row("last held-out loss", absl::StrFormat("%.4f at step %g", summary.held_out, summary.held_out_step));
  row(summary.unit, HumanCount(summary.units));
  row("time in steps", HumanDuration(summary.seconds));
  row("throughput",
      absl::StrFormat("%s %s/s", HumanCount(std::isfinite(summary.rate) ? summary.rate : 0), summary.unit));
  row("exposed communication", absl::StrFormat("%.1f %% of step time", 100 * summary.exposed));
  row("memory, measured / predicted", absl::StrCat(HumanBytes(last.value("memory_bytes", 0.0)), " / ",
                                                   HumanBytes(last.value("memory_predicted_bytes", 0.0))));
  ReductionRows(records, row);
  const JsonLines plans = ReadJsonLines(read("plans/compression.jsonl"), IsCompressionPlan);
  if (!plans.whole.empty()) {
    const json& plan = plans.whole.back();
    row("gradient codes by the last plan",
        absl::StrFormat("%s for %s; the uniform default's %s; error %.4f of %.4f allowed",
                        HumanBytes(plan.value("bytes", 0.0)), HumanBytes(plan.value("plain_bytes", 0.0)),
                        HumanBytes(plan.value("uniform_bytes", 0.0)), plan.value("relative_error", 0.0),
                        plan.value("relative_budget", 0.0)));
  }
  const json environment = json::parse(read("environment.json"), nullptr, false);
  if (environment.is_object()) {
    for (const auto& [name, value] : environment.items())
      row(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  std::string html = absl::StrCat(Head(run_dir), "<table>", rows, "</table><main>\n");
  html +=
      LineFigure("Loss", {MetricSeries(records, "loss", "training"), MetricSeries(records, "eval_loss", "held out")},
                 LineFigureOptions());
  html += LineFigure("Held-out accuracy", {MetricSeries(records, "eval_accuracy", "accuracy")}, LineFigureOptions());
  html += LineFigure(RateTitle(summary.unit), {RateSeries(records, summary.unit)}, kFromZero);
  html += TimeShares(records);
  html += LineFigure("Learning rate", {MetricSeries(records, "learning_rate", "learning rate")}, kFromZero);
  html += LineFigure("Gradient norm", {MetricSeries(records, "grad_norm", "gradient norm")}, kFromZero);
  LineFigureOptions batch = kFromZero;
  batch.ceiling = 4 * last.value("samples", 0.0);  // noise scales of steps that hardly see a gradient are huge
  html += LineFigure("Growing batch, samples",
                     {MetricSeries(records, "samples", "batch"), MetricSeries(records, "noise_scale", "noise scale")},
                     batch);
  html += LineFigure("Memory of rank 0, GiB",
                     {MetricSeries(records, "memory_bytes", "measured", 1 / kGiB),
                      MetricSeries(records, "memory_predicted_bytes", "predicted", 1 / kGiB)},
                     kFromZero);
  html += LineFigure("Exposed reduction of gradients, seconds",
                     {MetricSeries(records, "reduce_exposed_seconds", "measured"),
                      MetricSeries(records, "reduce_predicted_seconds", "predicted")},
                     kFromZero);
  html += LineFigure("Planned steps, seconds",
                     {MetricSeries(records, "plan_predicted_seconds", "predicted"),
                      OnlyWith(records, "sequence_plan", MetricSeries(records, "seconds", "measured"))},
                     kFromZero);
  html += LengthHistogram(records);
  html += "</main>\n";
  html += CompressionMap(plans, last.value("step", 0.0));
  html += SequenceMap(read("plans/sequences.jsonl"));
  if (const std::string sample = read("sample.txt"); !sample.empty())
    absl::StrAppend(&html, "<h2>Sample</h2><pre>", MarkupEscape(sample), "</pre>\n");
  if (const std::string job = read("job.textproto"); !job.empty())
    absl::StrAppend(&html, "<details><summary>Resolved job</summary><pre>", MarkupEscape(job), "</pre></details>\n");
  return WriteFileAtomically(PosixFiles(), out, html + "</html>\n");
}

absl::Status WriteOverlay(const std::vector<std::string>& run_dirs, const std::string& out,
                          std::vector<std::string>* without_metrics) {
  const std::vector<std::string> names = ShortNames(run_dirs);
  std::vector<Series> loss, held_out, accuracy, rate, learning_rate;
  std::string rows, missing, unit = "tokens";
  double highest_start = 0;
  for (size_t i = 0; i < run_dirs.size(); ++i) {
    const auto records = ReadMetrics(run_dirs[i]);
    if (!records.ok()) {
      without_metrics->push_back(run_dirs[i]);
      absl::StrAppend(&missing, "<p>", MarkupEscape(records.status().message()), "</p>");
      continue;
    }
    loss.push_back(MetricSeries(*records, "loss", names[i]));
    held_out.push_back(MetricSeries(*records, "eval_loss", names[i]));
    accuracy.push_back(MetricSeries(*records, "eval_accuracy", names[i]));
    rate.push_back(RateSeries(*records, names[i]));
    learning_rate.push_back(MetricSeries(*records, "learning_rate", names[i]));
    unit = MetricUnit(*records);
    if (!loss.back().points.empty()) highest_start = std::max(highest_start, loss.back().points.front().second);
    rows += FinalValue(Summarise(*records), loss.size() - 1, names[i], ReadOrEmpty(run_dirs[i] + "/state"));
  }
  if (loss.empty()) return absl::NotFoundError(absl::StrCat("none of ", run_dirs.size(), " runs has metrics"));
  std::string html = absl::StrCat(
      Head(absl::StrCat(run_dirs.size(), " runs")),
      "<table><tr><th>run</th><th>state</th><th>steps</th><th>loss, last tenth</th><th>held out</th><th>best held "
      "out</th><th>accuracy</th><th>time in steps</th><th>throughput</th></tr>",
      rows, "</table>", missing, "<main>\n");
  LineFigureOptions plain{.legend = LineFigureOptions::Legend::kHide}, losses = plain, from_zero = plain;
  losses.ceiling = 1.25 * highest_start;  // a run that diverges leaves the others their room
  from_zero.floor = LineFigureOptions::Floor::kZero;
  html += LineFigure("Training loss", loss, losses);
  html += LineFigure("Held-out loss", held_out, losses);
  html += LineFigure("Held-out accuracy", accuracy, plain);
  html += LineFigure(RateTitle(unit), rate, from_zero);
  html += LineFigure("Learning rate", learning_rate, from_zero);
  return WriteFileAtomically(PosixFiles(), out, html + "</main></html>\n");
}

}  // namespace shoal
