// What a sweep found: a row per run, and mean and range over seeds.
#pragma once

#include <string>
#include <vector>

#include "launch/experiment/run_status.h"
#include "launch/experiment/sweep.h"
#include "runtime/obs/run_metrics.h"

namespace shoal {

struct RunResult {
  RunState state = RunState::kNew;
  RunSummary summary;  // of the metrics so far; empty for kNew and kChanged
};
// Reads a run's directory. A finished run whose loss is not finite at its end counts as diverged.
RunResult ReadResult(const Sweep& sweep, const SweepRun& run);

const char* MetricName(config::Metric metric);
double MetricValue(config::Metric metric, const RunSummary& summary);  // NaN: the run has none
// Whether `a` is the better value.
bool Better(config::Metric metric, double a, double b);

// results.csv: run, name, the axes, seed, ranks, state, every metric, what reducing gradients took. `results` are those
// of sweep.runs, in order.
std::string ResultsCsv(const Sweep& sweep, const std::vector<RunResult>& results);
// Its column names other than the axes', which axes may not have.
std::vector<std::string> ReservedColumns();

// Runs that differ in their seed only. The values are those of finished runs; a diverged one has no value and is
// counted, never averaged.
struct Cell {
  std::vector<size_t> at;  // on sweep.dimensions
  int values = 0, diverged = 0, unfinished = 0;
  double mean = RunSummary::kNone, low = RunSummary::kNone, high = RunSummary::kNone;
};
std::vector<Cell> Cells(const Sweep& sweep, const std::vector<RunResult>& results);

// The parts of the sweep's plot: which dimension lies across, which make lines, and which a point takes the best of.
struct PlotRoles {
  std::vector<size_t> x, series, tuned;  // indices into sweep.dimensions; x: one, or none in a sweep without any
};
PlotRoles RolesOf(const Sweep& sweep);
// The cells that the plot shows: of those that differ on tuned dimensions only, the one with the best mean.
std::vector<Cell> BestCells(const Sweep& sweep, const std::vector<Cell>& cells);

// "learning_rate=1e-3, ranks=2" of the given dimensions.
std::string LabelText(const Sweep& sweep, const Cell& cell, const std::vector<size_t>& dimensions);

// The table that ends a sweep: every cell with mean, range, and what has no value; * marks the best.
std::string ResultsTable(const Sweep& sweep, const std::vector<Cell>& cells);

}  // namespace shoal
