// Plots as SVG: lines, bands, bars and marks over linear or logarithmic axes, inside a page that has PlotStyle() or as
// a file of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

// Text as it may stand in HTML and SVG.
std::string MarkupEscape(absl::string_view text);

// Style sheet of pages with plots: colours for light and dark, figures, tables.
std::string PlotStyle();

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

struct PlotAxis {
  enum class Scale : uint8_t { kLinear, kLog };
  double low = 0, high = 1;  // kLog: low > 0
  Scale scale = Scale::kLinear;
  std::vector<std::pair<double, std::string>> ticks = {};  // where and what; empty: round numbers
};

// One plot. Things are drawn in the order of the calls. `series` chooses the colour; past the last colour they come
// again, dashed.
class Plot {
 public:
  Plot(PlotAxis x, PlotAxis y);  // draws grid and ticks

  void Line(const Series& s, size_t series);  // few points also get a dot and a tooltip each
  // The area between low and high, as (x, low, high) in order of x; a single x becomes a bar with whiskers' width.
  struct Range {
    double x, low, high;
  };
  void Band(const std::vector<Range>& ranges, size_t series);
  void Bar(double x0, double x1, double y0, double y1, size_t series);
  // A cross at the plot's upper edge: a value that is not there, and why.
  void Cross(double x, const std::string& why, size_t series);

  // <figure> of a page, with a legend when there is more than one name. `across` says what the x axis is.
  std::string Figure(const std::string& title, const std::string& across, const std::vector<std::string>& names) const;
  // A whole SVG document with title and legend; its colours are written out, since few viewers know CSS variables.
  std::string File(const std::string& title, const std::string& across, const std::vector<std::string>& names) const;

 private:
  double X(double x) const;
  double Y(double y) const;
  PlotAxis x_, y_;
  std::string svg_;
};

// The least and the greatest of all values so far, for axes.
class Extent {
 public:
  void Add(double v) {
    low_ = v < low_ ? v : low_;
    high_ = v > high_ ? v : high_;
  }
  bool empty() const { return low_ > high_; }
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  double low_ = 1e300, high_ = -1e300;
};

// A short line in a series' colour and dashes, for legends outside the plot.
std::string Swatch(size_t series);

struct LineFigureOptions {
  enum class Floor : uint8_t { kData, kZero } floor = Floor::kData;
  double ceiling = std::numeric_limits<double>::infinity();  // what lies above is drawn at the upper edge
  enum class Legend : uint8_t { kShow, kHide } legend = Legend::kShow;
};
// A figure of lines over steps; "" when no series has a point. Long series are thinned to means of equal runs.
std::string LineFigure(const std::string& title, std::vector<Series> all, const LineFigureOptions& options);

}  // namespace shoal
