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
#include "runtime/obs/svg_plot.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string Histogram(const std::vector<json>& records) {
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

constexpr double kGiB = 1 << 30;
constexpr LineFigureOptions kFromZero{.floor = LineFigureOptions::Floor::kZero};

std::string Head(const std::string& title) {
  return absl::StrCat(
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>",
      MarkupEscape(title), "</title>", PlotStyle(), "<h1>", MarkupEscape(title), "</h1>");
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
  html += Histogram(records);
  html += "</main>\n";
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
