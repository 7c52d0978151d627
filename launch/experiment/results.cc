#include "launch/experiment/results.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

struct Column {
  const char* name;
  double (*value)(const RunSummary&);
};

constexpr Column kMeasured[] = {
    {"held_out_loss", [](const RunSummary& s) { return s.held_out; }},
    {"best_held_out_loss", [](const RunSummary& s) { return s.best_held_out; }},
    {"accuracy", [](const RunSummary& s) { return s.accuracy; }},
    {"loss", [](const RunSummary& s) { return s.end_loss; }},
    {"seconds_per_step", [](const RunSummary& s) { return s.step_seconds; }},
    {"reduced_bytes_per_step", [](const RunSummary& s) { return s.reduced_bytes; }},
    {"exposed_ms_per_step", [](const RunSummary& s) { return 1e3 * s.reduce_exposed_seconds; }},
    {"units_per_second", [](const RunSummary& s) { return s.rate; }},
    {"steps", [](const RunSummary& s) { return static_cast<double>(s.steps); }},
    {"units", [](const RunSummary& s) { return s.units; }},
    {"seconds", [](const RunSummary& s) { return s.seconds; }},
};

std::string Quoted(const std::string& field) {
  if (field.find_first_of(",\"\n") == std::string::npos) return field;
  return absl::StrCat("\"", absl::StrReplaceAll(field, {{"\"", "\"\""}}), "\"");
}

std::string Number(double v) { return std::isfinite(v) ? absl::StrFormat("%.9g", v) : ""; }

std::vector<size_t> Part(const std::vector<size_t>& at, const std::vector<size_t>& dimensions) {
  std::vector<size_t> part;
  for (const size_t d : dimensions) part.push_back(at[d]);
  return part;
}

}  // namespace

RunResult ReadResult(const Sweep& sweep, const SweepRun& run) {
  RunResult result{StatusOf(sweep, run).state, {}};
  if (result.state == RunState::kNew || result.state == RunState::kChanged) return result;
  if (const auto records = ReadMetrics(sweep.RunDir(run)); records.ok()) result.summary = Summarise(*records);
  if (result.state == RunState::kFinished && !std::isfinite(result.summary.end_loss))
    result.state = RunState::kDiverged;
  return result;
}

const char* MetricName(config::Metric metric) {
  switch (metric) {
    case config::HELD_OUT_LOSS:
      return "held-out loss";
    case config::BEST_HELD_OUT_LOSS:
      return "best held-out loss";
    case config::ACCURACY:
      return "accuracy";
    case config::LOSS:
      return "training loss at the end";
    case config::SECONDS_PER_STEP:
      return "seconds per step";
    case config::THROUGHPUT:
      return "throughput per second";
  }
  return "";
}

double MetricValue(config::Metric metric, const RunSummary& summary) {
  switch (metric) {
    case config::HELD_OUT_LOSS:
      return summary.held_out;
    case config::BEST_HELD_OUT_LOSS:
      return summary.best_held_out;
    case config::ACCURACY:
      return summary.accuracy;
    case config::LOSS:
      return summary.end_loss;
    case config::SECONDS_PER_STEP:
      return summary.step_seconds;
    case config::THROUGHPUT:
      return summary.rate;
  }
  return RunSummary::kNone;
}

bool Better(config::Metric metric, double a, double b) {
  return metric == config::ACCURACY || metric == config::THROUGHPUT ? a > b : a < b;
}

std::vector<std::string> ReservedColumns() {
  std::vector<std::string> names = {"run", "name", "seed", "ranks", "state", "unit"};
  for (const Column& column : kMeasured) names.push_back(column.name);
  return names;
}

std::string ResultsCsv(const Sweep& sweep, const std::vector<RunResult>& results) {
  std::vector<std::string> head = {"run", "name"};
  for (const Dimension& d : sweep.dimensions) {
    if (d.name != "ranks") head.push_back(Quoted(d.name));
  }
  for (const char* name : {"seed", "ranks", "state", "unit"}) head.push_back(name);
  for (const Column& column : kMeasured) head.push_back(column.name);
  std::string csv = absl::StrJoin(head, ",") + "\n";
  for (size_t i = 0; i < sweep.runs.size(); ++i) {
    const SweepRun& run = sweep.runs[i];
    const RunResult& result = results[i];
    std::vector<std::string> row = {absl::StrCat(run.number), Quoted(run.name)};
    for (size_t d = 0; d < sweep.dimensions.size(); ++d) {
      if (sweep.dimensions[d].name != "ranks") row.push_back(Quoted(sweep.dimensions[d].labels[run.at[d]]));
    }
    row.insert(row.end(),
               {absl::StrCat(run.seed), absl::StrCat(run.ranks), Text(result.state), Quoted(result.summary.unit)});
    for (const Column& column : kMeasured)
      row.push_back(result.summary.steps > 0 ? Number(column.value(result.summary)) : "");
    absl::StrAppend(&csv, absl::StrJoin(row, ","), "\n");
  }
  return csv;
}

std::vector<Cell> Cells(const Sweep& sweep, const std::vector<RunResult>& results) {
  std::vector<Cell> cells;
  for (size_t i = 0; i < sweep.runs.size(); ++i) {  // seeds vary fastest: runs of a cell follow each other
    if (cells.empty() || cells.back().at != sweep.runs[i].at) {
      cells.emplace_back();
      cells.back().at = sweep.runs[i].at;
    }
    Cell& cell = cells.back();
    const double value = MetricValue(sweep.config.metric(), results[i].summary);
    if (results[i].state == RunState::kDiverged) {
      ++cell.diverged;
    } else if (results[i].state != RunState::kFinished || !std::isfinite(value)) {
      ++cell.unfinished;
    } else {
      cell.mean = cell.values == 0 ? value : cell.mean + (value - cell.mean) / (cell.values + 1);
      ++cell.values;
      cell.low = std::fmin(cell.low, value);
      cell.high = std::fmax(cell.high, value);
    }
  }
  return cells;
}

PlotRoles RolesOf(const Sweep& sweep) {
  PlotRoles roles;
  const auto& plot = sweep.config.plot();
  for (size_t d = 0; d < sweep.dimensions.size(); ++d) {
    const std::string& name = sweep.dimensions[d].name;
    const bool listed = std::find(plot.series().begin(), plot.series().end(), name) != plot.series().end();
    const bool first_free = roles.x.empty() && !plot.has_x() && !listed;
    if (name == plot.x() || first_free)
      roles.x.push_back(d);
    else if (listed || plot.series().empty())
      roles.series.push_back(d);
    else
      roles.tuned.push_back(d);
  }
  return roles;
}

std::vector<Cell> BestCells(const Sweep& sweep, const std::vector<Cell>& cells) {
  const PlotRoles roles = RolesOf(sweep);
  std::map<std::pair<std::vector<size_t>, std::vector<size_t>>, Cell> best;
  for (const Cell& cell : cells) {
    const auto [at, added] = best.try_emplace({Part(cell.at, roles.series), Part(cell.at, roles.x)}, cell);
    // A setting in which some seeds diverged is no better than one in which none did.
    Cell& other = at->second;
    const auto worth = [](const Cell& c) { return std::make_pair(c.values > 0, -c.diverged); };
    if (!added && (worth(cell) > worth(other) || (worth(cell) == worth(other) && cell.values > 0 &&
                                                  Better(sweep.config.metric(), cell.mean, other.mean))))
      other = cell;
  }
  std::vector<Cell> list;
  for (const auto& [key, cell] : best) list.push_back(cell);
  return list;
}

std::string LabelText(const Sweep& sweep, const Cell& cell, const std::vector<size_t>& dimensions) {
  std::vector<std::string> parts;
  for (const size_t d : dimensions)
    parts.push_back(absl::StrCat(sweep.dimensions[d].name, "=", sweep.dimensions[d].labels[cell.at[d]]));
  return absl::StrJoin(parts, ", ");
}

std::string ResultsTable(const Sweep& sweep, const std::vector<Cell>& cells) {
  const PlotRoles roles = RolesOf(sweep);
  const config::Metric metric = sweep.config.metric();
  std::vector<std::vector<size_t>> marked;
  if (roles.tuned.empty()) {
    const Cell* best = nullptr;
    for (const Cell& cell : cells) {
      if (cell.values > 0 && (best == nullptr || Better(metric, cell.mean, best->mean))) best = &cell;
    }
    if (best != nullptr) marked.push_back(best->at);
  } else {
    for (const Cell& cell : BestCells(sweep, cells)) {
      if (cell.values > 0) marked.push_back(cell.at);
    }
  }
  std::vector<std::vector<std::string>> rows(1);
  for (const Dimension& d : sweep.dimensions) rows[0].push_back(d.name);
  for (const char* name : {"mean", "least", "greatest", "runs", ""}) rows[0].push_back(name);
  for (const Cell& cell : cells) {
    std::vector<std::string> row;
    for (size_t d = 0; d < cell.at.size(); ++d) row.push_back(sweep.dimensions[d].labels[cell.at[d]]);
    for (const double v : {cell.mean, cell.low, cell.high})
      row.push_back(cell.values > 0 ? absl::StrFormat("%.5g", v) : cell.diverged > 0 ? "diverged" : "-");
    std::string notes = std::find(marked.begin(), marked.end(), cell.at) != marked.end() ? "*" : "";
    if (cell.diverged > 0) absl::StrAppend(&notes, notes.empty() ? "" : " ", cell.diverged, " diverged");
    if (cell.unfinished > 0) absl::StrAppend(&notes, notes.empty() ? "" : " ", cell.unfinished, " without a value");
    row.push_back(absl::StrCat(cell.values));
    row.push_back(notes);
    rows.push_back(std::move(row));
  }
  std::string text = absl::StrCat(MetricName(metric), ", mean and range over seeds:\n");
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      size_t width = 0;
      for (const auto& other : rows) width = std::max(width, other[c].size());
      absl::StrAppendFormat(&line, "  %-*s", static_cast<int>(width), row[c]);
    }
    absl::StrAppend(&text, line.substr(0, line.find_last_not_of(' ') + 1), "\n");
  }
  if (!roles.tuned.empty()) {
    std::vector<std::string> names;
    for (const size_t d : roles.tuned) names.push_back(sweep.dimensions[d].name);
    absl::StrAppend(&text, "* the best over ", absl::StrJoin(names, ", "), "\n");
  }
  return text;
}

}  // namespace shoal
