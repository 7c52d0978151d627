#include "launch/experiment/sweep_plot.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shoal {
namespace {

PlotAxis::Scale AxisScale(config::SweepPlot::Scale scale) {
  return scale == config::SweepPlot::LOG ? PlotAxis::Scale::kLog : PlotAxis::Scale::kLinear;
}

// The x axis: numbers where all labels are, else one place after the other.
struct Across {
  std::vector<double> places;  // of the labels
  PlotAxis axis;
  std::string name;
};

Across AcrossOf(const Sweep& sweep, const PlotRoles& roles) {
  Across across;
  if (roles.x.empty()) return {{0}, {.low = -1, .high = 1, .ticks = {{0, "all runs"}}}, ""};
  const Dimension& dimension = sweep.dimensions[roles.x[0]];
  across.name = dimension.name;
  across.places = Numbers(dimension);
  if (across.places.empty()) {
    for (size_t i = 0; i < dimension.labels.size(); ++i) across.places.push_back(static_cast<double>(i));
    across.axis.low = -0.5;
    across.axis.high = static_cast<double>(dimension.labels.size()) - 0.5;
  } else {
    const auto [low, high] = std::minmax_element(across.places.begin(), across.places.end());
    across.axis.low = *low;
    across.axis.high = *high;
    across.axis.scale = AxisScale(sweep.config.plot().x_scale());
  }
  for (size_t i = 0; i < dimension.labels.size(); ++i)
    across.axis.ticks.emplace_back(across.places[i], dimension.labels[i]);
  return across;
}

std::string TitleOf(const Sweep& sweep, const PlotRoles& roles) {
  std::string title = absl::StrCat(sweep.config.name(), ": ", MetricName(sweep.config.metric()));
  if (sweep.config.seeds_size() > 1)
    absl::StrAppend(&title, ", mean and range over ", sweep.config.seeds_size(), " seeds");
  std::vector<std::string> tuned;
  for (const size_t d : roles.tuned) tuned.push_back(sweep.dimensions[d].name);
  if (!tuned.empty()) absl::StrAppend(&title, ", best over ", absl::StrJoin(tuned, ", "));
  return title;
}

}  // namespace

std::string PlotSweep(const Sweep& sweep, const std::vector<Cell>& cells) {
  const PlotRoles roles = RolesOf(sweep);
  const Across across = AcrossOf(sweep, roles);
  std::vector<std::string> names;
  std::map<std::string, std::vector<Cell>> lines;
  Extent extent;
  for (const Cell& cell : BestCells(sweep, cells)) {
    std::string name = LabelText(sweep, cell, roles.series);
    if (name.empty()) name = MetricName(sweep.config.metric());
    if (lines[name].empty()) names.push_back(name);
    lines[name].push_back(cell);
    if (cell.values > 0) extent.Add(cell.low), extent.Add(cell.high);
  }
  PlotAxis up{.scale = AxisScale(sweep.config.plot().y_scale())};
  if (!extent.empty()) up.low = extent.low(), up.high = extent.high();
  if (up.low <= 0) up.scale = PlotAxis::Scale::kLinear;  // nothing measured yet, or an accuracy of 0
  Plot plot(across.axis, up);
  for (size_t i = 0; i < names.size(); ++i) {
    auto& line = lines[names[i]];
    const auto place = [&](const Cell& cell) { return across.places[roles.x.empty() ? 0 : cell.at[roles.x[0]]]; };
    std::sort(line.begin(), line.end(), [&](const Cell& a, const Cell& b) { return place(a) < place(b); });
    Series mean{names[i], {}};
    std::vector<Plot::Range> ranges;
    for (const Cell& cell : line) {
      if (cell.diverged > 0 || cell.values == 0) {
        plot.Cross(place(cell),
                   absl::StrCat(names[i], ": ", cell.diverged, " diverged, ", cell.unfinished, " without a value"), i);
      }
      if (cell.values == 0) continue;
      mean.points.emplace_back(place(cell), cell.mean);
      ranges.push_back({place(cell), cell.low, cell.high});
    }
    plot.Band(ranges, i);
    plot.Line(mean, i);
  }
  return plot.File(TitleOf(sweep, roles), across.name, names);
}

}  // namespace shoal
