#include "runtime/obs/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr double kWidth = 560, kHeight = 240, kLeft = 64, kRight = 24, kTop = 12, kBottom = 34;
constexpr double kTitle = 26, kLegendRow = 18;  // of a file
constexpr size_t kColours = 10;
const char* const kDashes[] = {"none", "6 3", "2 3", "8 3 2 3"};

std::string Colour(size_t series) { return absl::StrCat("var(--c", series % kColours, ")"); }
const char* Dashes(size_t series) { return kDashes[series / kColours % std::size(kDashes)]; }

std::map<std::string, std::string> Light() {
  return {{"bg", "#fff"},    {"fg", "#1c2430"}, {"dim", "#5d6878"}, {"grid", "#e3e7ed"}, {"c0", "#2563c9"},
          {"c1", "#d9622b"}, {"c2", "#2a9d5c"}, {"c3", "#a24bc4"},  {"c4", "#8a8f98"},   {"c5", "#c9a227"},
          {"c6", "#159a9c"}, {"c7", "#c2255c"}, {"c8", "#6b4e2e"},  {"c9", "#5c7cfa"}};
}
std::map<std::string, std::string> Dark() {
  return {{"bg", "#14181f"}, {"fg", "#e6eaf0"}, {"dim", "#9aa5b4"}, {"grid", "#2b323d"}, {"c0", "#6aa2ff"},
          {"c1", "#ff9c6b"}, {"c2", "#63d297"}, {"c3", "#d08cf0"},  {"c4", "#aab0ba"},   {"c5", "#e6c65c"},
          {"c6", "#5fd0d2"}, {"c7", "#ff7fa8"}, {"c8", "#c4a07a"},  {"c9", "#9db2ff"}};
}

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
  if (std::abs(v) >= 1e12) return absl::StrFormat("%.1e", v);
  if (std::abs(v) >= 1e4) return HumanCount(v);
  if (std::abs(v) < 1e-2) return absl::StrFormat("%.1e", v);
  return absl::StrFormat("%g", std::round(v * 1e6) / 1e6);
}

// Fills in what the caller left open: some height or width, and ticks.
PlotAxis Settled(PlotAxis axis, int count) {
  const bool log = axis.scale == PlotAxis::Scale::kLog;
  if (axis.high <= axis.low) {
    const double half = axis.low == 0 ? 0.5 : std::abs(axis.low) / 2;
    axis.high = log ? axis.low * 3 : axis.low + half;
    axis.low = log ? axis.low / 3 : axis.low - half;
  }
  if (!axis.ticks.empty()) return axis;
  if (log) {
    // Within two decades powers of ten alone are too few, and within less than one so are their multiples.
    const bool fine = axis.high / axis.low < 100;
    for (double power = std::pow(10, std::floor(std::log10(axis.low))); power <= axis.high; power *= 10) {
      for (const double m : {1.0, 2.0, 3.0, 5.0, 7.0}) {
        const double v = m * power;
        if (v >= axis.low * (1 - 1e-9) && v <= axis.high * (1 + 1e-9) && (fine || m == 1.0))
          axis.ticks.emplace_back(v, Label(v));
      }
    }
    if (axis.ticks.size() >= 3) return axis;
    axis.ticks.clear();
  }
  const double step = NiceStep(axis.high - axis.low, count);
  for (double v = std::ceil(axis.low / step) * step; v <= axis.high + step * 1e-6; v += step)
    axis.ticks.emplace_back(v, Label(std::abs(v) < step * 1e-6 ? 0 : v));
  return axis;
}

// Where v lies between the ends of the axis, 0 to 1; what lies beyond them is at the end.
double Place(const PlotAxis& axis, double v) {
  v = std::clamp(v, axis.low, axis.high);
  if (axis.scale == PlotAxis::Scale::kLinear) return (v - axis.low) / (axis.high - axis.low);
  return std::log(v / axis.low) / std::log(axis.high / axis.low);
}

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

}  // namespace

std::string PlotStyle() {
  const auto variables = [](const std::map<std::string, std::string>& values) {
    std::string css = ":root{";
    for (const auto& [name, value] : values) absl::StrAppend(&css, "--", name, ":", value, ";");
    return css + "}";
  };
  return absl::StrCat(
      "<style>\n", variables(Light()), "\n@media(prefers-color-scheme:dark){", variables(Dark()), "}\n",
      R"(body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1.2rem}figure{margin:0}figcaption{font-weight:600}
figcaption small{font-weight:400;color:var(--dim)}
svg{width:100%;height:auto}.swatch{width:24px;height:8px;margin:0 .3em 0 .8em}td .swatch{margin-left:0}svg text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--grid)}table{border-collapse:collapse;margin:1rem 0}
th{text-align:left}td,th{padding:.15rem 1.2rem .15rem 0}td:first-child{color:var(--dim)}pre{background:var(--grid);padding:.8rem;overflow-x:auto;white-space:pre-wrap;border-radius:6px}
</style>)");
}

std::string MarkupEscape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

Plot::Plot(PlotAxis x, PlotAxis y) : x_(Settled(std::move(x), 6)), y_(Settled(std::move(y), 5)) {
  for (const auto& [v, label] : y_.ticks) {
    absl::StrAppendFormat(&svg_,
                          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" "
                          "y=\"%.1f\" text-anchor=\"end\">%s</text>",
                          kLeft, kWidth - kRight, Y(v), Y(v), kLeft - 6, Y(v) + 4, MarkupEscape(label));
  }
  for (const auto& [v, label] : x_.ticks) {
    absl::StrAppendFormat(&svg_, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", X(v),
                          kHeight - kBottom + 16, MarkupEscape(label));
  }
}

double Plot::X(double x) const { return kLeft + Place(x_, x) * (kWidth - kLeft - kRight); }
double Plot::Y(double y) const { return kHeight - kBottom - Place(y_, y) * (kHeight - kTop - kBottom); }

void Plot::Line(const Series& s, size_t series) {
  const std::string colour = Colour(series);
  std::string path;
  for (const auto& [x, y] : s.points) absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", X(x), Y(y));
  absl::StrAppendFormat(&svg_,
                        "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\" stroke-dasharray=\"%s\"/>",
                        path, colour, *Dashes(series) == '\0' ? "none" : Dashes(series));
  if (s.points.size() > 40) return;
  for (const auto& [x, y] : s.points) {
    absl::StrAppendFormat(&svg_,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.4\" fill=\"%s\"><title>%s: %g at %g</title></circle>",
                          X(x), Y(y), colour, MarkupEscape(s.name), y, x);
  }
}

void Plot::Band(const std::vector<Range>& ranges, size_t series) {
  if (ranges.empty()) return;
  std::string points;
  for (const Range& r : ranges) absl::StrAppendFormat(&points, "%.1f,%.1f ", X(r.x), Y(r.high));
  for (auto r = ranges.rbegin(); r != ranges.rend(); ++r)
    absl::StrAppendFormat(&points, "%.1f,%.1f ", X(r->x), Y(r->low));
  absl::StrAppendFormat(&svg_, "<polygon points=\"%s\" fill=\"%s\" fill-opacity=\"0.15\"/>", points, Colour(series));
  for (const Range& r : ranges) {
    absl::StrAppendFormat(&svg_, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>", X(r.x),
                          X(r.x), Y(r.low), Y(r.high), Colour(series));
  }
}

void Plot::Bar(double x0, double x1, double y0, double y1, size_t series) {
  absl::StrAppendFormat(&svg_, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>", X(x0), Y(y1),
                        std::max(0.5, X(x1) - X(x0) - 0.5), Y(y0) - Y(y1), Colour(series));
}

void Plot::Cross(double x, const std::string& why, size_t series) {
  const double at = X(x), top = kTop - 4 + 5 * static_cast<double>(series % kColours);
  absl::StrAppendFormat(
      &svg_,
      "<path d=\"M%.1f %.1fl8 8m0 -8l-8 8\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"><title>%s</title></path>",
      at - 4, top, Colour(series), MarkupEscape(why));
}

std::string Plot::Figure(const std::string& title, const std::string& across,
                         const std::vector<std::string>& names) const {
  std::string legend;
  for (size_t i = 0; i < names.size() && names.size() > 1; ++i)
    absl::StrAppend(&legend, "<span>", Swatch(i), MarkupEscape(names[i]), "</span> ");
  return absl::StrFormat(
      "<figure><figcaption>%s <small>%s</small></figcaption><svg viewBox=\"0 0 %g %g\" role=\"img\" "
      "aria-label=\"%s\">%s<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text></svg></figure>\n",
      MarkupEscape(title), legend, kWidth, kHeight, MarkupEscape(title), svg_, kWidth - kRight, kHeight - 4,
      MarkupEscape(across));
}

std::string Plot::File(const std::string& title, const std::string& across,
                       const std::vector<std::string>& names) const {
  const double height = kTitle + kHeight + kLegendRow * static_cast<double>(names.size()) + 6;
  std::string legend;
  for (size_t i = 0; i < names.size(); ++i) {
    const double y = kTitle + kHeight + kLegendRow * static_cast<double>(i);
    absl::StrAppendFormat(&legend,
                          "<line x1=\"%g\" x2=\"%g\" y1=\"%g\" y2=\"%g\" stroke=\"%s\" stroke-width=\"3\" "
                          "stroke-dasharray=\"%s\"/><text x=\"%g\" y=\"%g\">%s</text>",
                          kLeft, kLeft + 24, y + 8, y + 8, Colour(i), Dashes(i), kLeft + 32, y + 12,
                          MarkupEscape(names[i]));
  }
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" font-family=\"system-ui,sans-serif\">"
      "<style>text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--grid)}</style>"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"var(--bg)\"/><text x=\"%g\" y=\"17\">%s</text>"
      "<g transform=\"translate(0,%g)\">%s<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text></g>%s</svg>\n",
      kWidth, height, kLeft, MarkupEscape(title), kTitle, svg_, kWidth - kRight, kHeight - 4, MarkupEscape(across),
      legend);
  for (const auto& [name, value] : Light()) absl::StrReplaceAll({{absl::StrCat("var(--", name, ")"), value}}, &svg);
  return svg;
}

std::string Swatch(size_t series) {
  return absl::StrFormat(
      "<svg class=\"swatch\" viewBox=\"0 0 24 8\"><line x1=\"0\" x2=\"24\" y1=\"4\" y2=\"4\" stroke=\"%s\" "
      "stroke-width=\"3\" stroke-dasharray=\"%s\"/></svg>",
      Colour(series), Dashes(series));
}

std::string LineFigure(const std::string& title, std::vector<Series> all, const LineFigureOptions& options) {
  Extent x, y;
  std::vector<std::string> names;
  for (Series& s : all) {
    s = Thin(std::move(s));
    if (options.legend == LineFigureOptions::Legend::kShow) names.push_back(s.name);
    for (const auto& [at, value] : s.points) x.Add(at), y.Add(value);
  }
  if (x.empty()) return "";
  const bool zero = options.floor == LineFigureOptions::Floor::kZero;
  const double high = options.ceiling > y.low() ? std::min(y.high(), options.ceiling) : y.high();
  Plot plot({.low = x.low(), .high = x.high()}, {.low = zero ? 0 : y.low(), .high = high});
  for (size_t i = 0; i < all.size(); ++i) plot.Line(all[i], i);
  return plot.Figure(title, "step", names);
}

}  // namespace shoal
