#include "runtime/obs/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file_system.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

constexpr double kWidth = 560, kHeight = 240, kLeft = 64, kRight = 12, kTop = 12, kBottom = 34;
const char* const kColours[] = {"var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)"};

// 1, 2 or 5 times a power of ten, so that about `count` steps span `range`.
double NiceStep(double range, int count) {
  const double raw = range / count, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double m : {1.0, 2.0, 5.0}) {
    if (raw <= m * power) return m * power;
  }
  return 10 * power;
}

std::string Label(double v) {
  if (v == 0) return "0";
  if (std::abs(v) >= 1e4) return HumanCount(v);
  if (std::abs(v) < 1e-2) return absl::StrFormat("%.1e", v);
  return absl::StrFormat("%g", std::round(v * 1e6) / 1e6);
}

class Plot {
 public:
  Plot(double x0, double x1, double y0, double y1)
      : x0_(x0), x1_(x1 > x0 ? x1 : x0 + 1), y0_(y0), y1_(y1 > y0 ? y1 : y0 + std::max(1e-12, std::abs(y0))) {
    const double step = NiceStep(y1_ - y0_, 5);
    for (double y = std::ceil(y0_ / step) * step; y <= y1_ + step * 1e-6; y += step) {
      absl::StrAppendFormat(
          &svg_, "<line class=grid x1=%.1f x2=%.1f y1=%.1f y2=%.1f /><text x=%.1f y=%.1f text-anchor=end>%s</text>",
          kLeft, kWidth - kRight, Y(y), Y(y), kLeft - 6, Y(y) + 4, Label(y));
    }
    const double across = NiceStep(x1_ - x0_, 6);
    for (double x = std::ceil(x0_ / across) * across; x <= x1_ + across * 1e-6; x += across) {
      absl::StrAppendFormat(&svg_, "<text x=%.1f y=%.1f text-anchor=middle>%s</text>", X(x), kHeight - kBottom + 16,
                            Label(x));
    }
  }
  double X(double x) const { return kLeft + (x - x0_) / (x1_ - x0_) * (kWidth - kLeft - kRight); }
  double Y(double y) const { return kHeight - kBottom - (y - y0_) / (y1_ - y0_) * (kHeight - kTop - kBottom); }
  void Line(const Series& s, const char* colour) {
    std::string path;
    for (const auto& [x, y] : s.points)
      absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", X(x), Y(y));
    absl::StrAppendFormat(&svg_, "<path d=\"%s\" fill=none stroke=\"%s\" stroke-width=1.6 />", path, colour);
    if (s.points.size() <= 40) {
      for (const auto& [x, y] : s.points)
        absl::StrAppendFormat(&svg_, "<circle cx=%.1f cy=%.1f r=2.4 fill=\"%s\"><title>%s: %g at %g</title></circle>",
                              X(x), Y(y), colour, Escape(s.name), y, x);
    }
  }
  void Bar(double x0, double x1, double y0, double y1, const char* colour) {
    absl::StrAppendFormat(&svg_, "<rect x=%.1f y=%.1f width=%.1f height=%.1f fill=\"%s\" />", X(x0), Y(y1),
                          std::max(0.5, X(x1) - X(x0) - 0.5), Y(y0) - Y(y1), colour);
  }
  std::string Figure(const std::string& title, const std::string& across, const std::vector<std::string>& names) const {
    std::string legend;
    for (size_t i = 0; i < names.size() && names.size() > 1; ++i)
      absl::StrAppend(&legend, "<span><i style=\"background:", kColours[i % 5], "\"></i>", Escape(names[i]),
                      "</span> ");
    return absl::StrFormat(
        "<figure><figcaption>%s <small>%s</small></figcaption><svg viewBox=\"0 0 %g %g\" role=img "
        "aria-label=\"%s\">%s<text x=%g y=%g text-anchor=end>%s</text></svg></figure>\n",
        Escape(title), legend, kWidth, kHeight, Escape(title), svg_, kWidth - kRight, kHeight - 4, Escape(across));
  }

 private:
  double x0_, x1_, y0_, y1_;
  std::string svg_;
};

// At most ~600 points: means of equal runs, so that a long run stays a light page.
Series Thin(Series s) {
  const size_t run = (s.points.size() + 599) / 600;
  if (run <= 1) return s;
  Series thin{s.name, {}};
  for (size_t i = 0; i < s.points.size(); i += run) {
    double x = 0, y = 0;
    const size_t n = std::min(run, s.points.size() - i);
    for (size_t k = i; k < i + n; ++k)
      x += s.points[k].first / static_cast<double>(n), y += s.points[k].second / static_cast<double>(n);
    thin.points.emplace_back(x, y);
  }
  return thin;
}

enum class Floor { kZero, kData };

std::string LineFigure(const std::string& title, std::vector<Series> all, Floor floor) {
  double x0 = 1e300, x1 = -1e300, y0 = 1e300, y1 = -1e300;
  std::vector<std::string> names;
  for (Series& s : all) {
    s = Thin(std::move(s));
    names.push_back(s.name);
    for (const auto& [x, y] : s.points)
      x0 = std::min(x0, x), x1 = std::max(x1, x), y0 = std::min(y0, y), y1 = std::max(y1, y);
  }
  if (x0 > x1) return "";
  if (floor == Floor::kZero) y0 = 0;
  Plot plot(x0, x1, y0, y1);
  for (size_t i = 0; i < all.size(); ++i) plot.Line(all[i], kColours[i % 5]);
  return plot.Figure(title, "step", names);
}

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
  Plot plot(low, high, 0, most);
  for (const auto& [bin, n] : count) plot.Bar(bin, bin + 1, 0, n, kColours[0]);
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
  Plot plot(first, last, 0, 100);
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
               std::min(100.0, at + share), kColours[p]);
      at += share;
    }
  }
  return plot.Figure("Share of the step, %", "step", names);
}

Series Values(const std::vector<json>& records, const char* field, const char* name, double scale) {
  Series s{name, {}};
  for (const json& r : records) {
    if (r.contains(field) && r[field].is_number())
      s.points.emplace_back(r["step"].get<double>(), r[field].get<double>() * scale);
  }
  return s;
}

constexpr const char* kStyle = R"(<style>
:root{--bg:#fff;--fg:#1c2430;--dim:#5d6878;--grid:#e3e7ed;--c0:#2563c9;--c1:#d9622b;--c2:#2a9d5c;--c3:#a24bc4;--c4:#8a8f98}
@media(prefers-color-scheme:dark){:root{--bg:#14181f;--fg:#e6eaf0;--dim:#9aa5b4;--grid:#2b323d;--c0:#6aa2ff;--c1:#ff9c6b;--c2:#63d297;--c3:#d08cf0;--c4:#aab0ba}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1.2rem}figure{margin:0}figcaption{font-weight:600}
figcaption small{font-weight:400;color:var(--dim)}figcaption i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .8em;border-radius:2px}
svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--grid)}table{border-collapse:collapse;margin:1rem 0}
td{padding:.15rem 1.2rem .15rem 0}td:first-child{color:var(--dim)}pre{background:var(--grid);padding:.8rem;overflow-x:auto;white-space:pre-wrap;border-radius:6px}
</style>)";

}  // namespace

absl::Status WriteReport(const std::string& run_dir) {
  FileSystem& files = PosixFiles();
  auto metrics = files.Read(run_dir + "/metrics.jsonl");
  if (!metrics.ok()) return absl::NotFoundError(absl::StrCat(run_dir, " has no metrics: ", metrics.status().message()));
  std::vector<json> records;
  for (const auto line : absl::StrSplit(*metrics, '\n')) {
    json record = json::parse(line.begin(), line.end(), nullptr, false);
    if (record.is_object() && record.contains("step")) records.push_back(std::move(record));
  }
  if (records.empty()) return absl::NotFoundError(absl::StrCat(run_dir, "/metrics.jsonl has no step yet"));
  const auto read = [&](const char* name) {
    auto text = files.Read(run_dir + "/" + name);
    return text.ok() ? *text : std::string();
  };
  double seconds = 0, tokens = 0, exposed = 0;
  Series rate{"tokens/s", {}};
  for (const json& r : records) {
    const double s = r.value("seconds", 0.0), t = r.value("tokens", 0.0);
    seconds += s, tokens += t, exposed += r.value("comm_exposed_seconds", 0.0);
    if (s > 0) rate.points.emplace_back(r["step"].get<double>(), t / s);
  }
  const json& last = records.back();
  std::string rows;
  const auto row = [&](const std::string& name, const std::string& value) {
    absl::StrAppend(&rows, "<tr><td>", Escape(name), "</td><td>", Escape(value), "</td></tr>");
  };
  row("state", read("state"));
  row("steps", absl::StrCat(last["step"].get<int64_t>()));
  if (last["loss"].is_number()) row("last loss", absl::StrFormat("%.4f", last["loss"].get<double>()));
  const Series eval = Values(records, "eval_loss", "held out", 1);
  if (!eval.points.empty())
    row("last held-out loss", absl::StrFormat("%.4f at step %g", eval.points.back().second, eval.points.back().first));
  row("tokens", HumanCount(tokens));
  row("time in steps", HumanDuration(seconds));
  row("throughput", absl::StrFormat("%s tokens/s", HumanCount(seconds > 0 ? tokens / seconds : 0)));
  row("exposed communication", absl::StrFormat("%.1f %% of step time", seconds > 0 ? 100 * exposed / seconds : 0));
  row("memory, measured / predicted", absl::StrCat(HumanBytes(last.value("memory_bytes", 0.0)), " / ",
                                                   HumanBytes(last.value("memory_predicted_bytes", 0.0))));
  const json environment = json::parse(read("environment.json"), nullptr, false);
  if (environment.is_object()) {
    for (const auto& [name, value] : environment.items())
      row(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  constexpr double kGiB = 1 << 30;
  std::string html = absl::StrCat(
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>",
      Escape(run_dir), "</title>", kStyle, "<h1>", Escape(run_dir), "</h1><table>", rows, "</table><main>\n");
  html += LineFigure("Loss", {Values(records, "loss", "training", 1), eval}, Floor::kData);
  html += LineFigure("Tokens per second", {rate}, Floor::kZero);
  html += TimeShares(records);
  html += LineFigure("Learning rate", {Values(records, "learning_rate", "learning rate", 1)}, Floor::kZero);
  html += LineFigure("Gradient norm", {Values(records, "grad_norm", "gradient norm", 1)}, Floor::kZero);
  html += LineFigure("Memory of rank 0, GiB",
                     {Values(records, "memory_bytes", "measured", 1 / kGiB),
                      Values(records, "memory_predicted_bytes", "predicted", 1 / kGiB)},
                     Floor::kZero);
  html += Histogram(records);
  html += "</main>\n";
  if (const std::string sample = read("sample.txt"); !sample.empty())
    absl::StrAppend(&html, "<h2>Sample</h2><pre>", Escape(sample), "</pre>\n");
  if (const std::string job = read("job.textproto"); !job.empty())
    absl::StrAppend(&html, "<details><summary>Resolved job</summary><pre>", Escape(job), "</pre></details>\n");
  return WriteFileAtomically(files, run_dir + "/report.html", html + "</html>\n");
}

}  // namespace shoal
