#include "parallel/sequence_lp.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Sense = LinearProgram::Sense;

constexpr double kAbove = 1 + 1e-9, kBelow = 1 - 1e-9;  // beyond all rounding
// Priorities of branching.
constexpr int kGroups = 1, kBatches = 2, kDegree = 3, kAllBatches = 4;
constexpr size_t kLongest = 3;  // classes that have columns of their degree

}  // namespace

SequenceLp::SequenceLp(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model)
    : ranks_(ranks),
      levels_(std::countr_zero(static_cast<unsigned>(model.LargestDegree(ranks))) + 1),
      sequences_(static_cast<int>(lengths.size())),
      model_(model) {
  unit_ = BoundStep(lengths, ranks, model).quick();
  token_unit_ = static_cast<double>(*std::max_element(lengths.begin(), lengths.end()));
  MakeClasses(lengths);
  MakeCells(lengths);
  MakeColumns();
  AddTotals();
  for (const Cell& cell : cells_) {
    for (int l = 0; l < levels_; ++l) {
      if (cell.places[static_cast<size_t>(l)].groups < 0) continue;
      AddGroups(cell, l);
      AddPacking(cell, l);
    }
    AddRanks(cell);
    AddLongest(cell);
  }
}

double SequenceLp::PerToken(const Class& q, int level) const { return Seconds(q.least, level) / Rank(q.least); }

double SequenceLp::Excess(int64_t tokens, int64_t least) const {
  return model_.quadratic / unit_ * static_cast<double>(tokens) * static_cast<double>(tokens - least);
}

double SequenceLp::Shortest(int64_t tokens) const {
  double shortest = std::numeric_limits<double>::infinity();
  for (int l = 0; l < levels_; ++l) {
    if (Holds(l, tokens)) shortest = std::min(shortest, Seconds(tokens, l));
  }
  return shortest;
}

double SequenceLp::MemoryShare(int64_t tokens, int level) const {
  return static_cast<double>(tokens) / static_cast<double>(model_.tokens_per_rank << level);
}

double SequenceLp::TimeShare(int64_t tokens, int level, const Cell& cell) const {
  return Seconds(tokens, level) / (cell.high - model_.fixed / unit_);
}

// The longest lengths each by itself, the others in buckets of about equally many tokens, which end where a lower
// degree begins to hold them.
void SequenceLp::MakeClasses(absl::Span<const int32_t> lengths) {
  constexpr size_t kExact = 12;
  constexpr double kBuckets = 5;
  std::map<int64_t, int, std::greater<>> counts;
  for (const int32_t length : lengths) ++counts[length];
  double rest = 0;
  size_t seen = 0;
  for (const auto& [tokens, count] : counts) {
    if (seen++ >= kExact) rest += Rank(tokens) * count;
  }
  const auto least_level = [&](int64_t tokens) {
    int level = 0;
    while (!Holds(level, tokens)) ++level;
    return level;
  };
  std::vector<std::pair<int64_t, int>> members;  // of the class being made
  const auto close = [&] {
    if (members.empty()) return;
    Class q{members.back().first, members.front().first};
    for (const auto& [tokens, count] : members) {
      q.count += count;
      q.tokens += Rank(tokens) * count;
      q.excess += Excess(tokens, q.least) * count;
    }
    classes_.push_back(q);
    members.clear();
  };
  seen = 0;
  double here = 0;
  for (const auto& [tokens, count] : counts) {
    const bool exact = seen++ < kExact;
    if (exact || here >= rest / kBuckets ||
        (!members.empty() && least_level(members.front().first) != least_level(tokens))) {
      close();
      here = 0;
    }
    members.emplace_back(tokens, count);
    here += Rank(tokens) * count;
    if (exact) close();
  }
  close();
}

// Boundaries lie where a long sequence begins to fit at some degree, and about evenly in between.
void SequenceLp::MakeCells(absl::Span<const int32_t> lengths) {
  constexpr size_t kThresholds = 2;
  constexpr double kStep = 1.4, kLeastStep = 1.06;
  constexpr int kSteps = 8;
  const double fixed = model_.fixed / unit_;
  std::vector<double> exact;  // loads
  for (size_t q = 0; q < classes_.size() && q < kThresholds; ++q) {
    for (int l = 0; l < levels_; ++l) {
      if (Holds(l, classes_[q].most)) exact.push_back(Seconds(classes_[q].most, l) * kBelow);
    }
  }
  double area = 0, most = 0;
  for (const int32_t length : lengths) {
    double least = std::numeric_limits<double>::infinity(), longest = 0;
    for (int l = 0; l < levels_; ++l) {
      if (!Holds(l, length)) continue;
      least = std::min(least, Seconds(length, l) * (1 << l));
      longest = std::max(longest, Seconds(length, l));
    }
    area += least;
    most += longest;
  }
  // The longest that a good plan's micro-batch may be.
  const double top = std::max(area / ranks_, Shortest(classes_[0].most)) * kAbove;
  std::vector<double> loads;
  const auto add = [&](double load) {
    for (const double other : loads) {
      if (load < other * kLeastStep && other < load * kLeastStep) return;
    }
    loads.push_back(load);
  };
  for (const double load : exact) {
    if (load < top * kStep) add(load);
  }
  double grid = top;
  for (int i = 0; i < kSteps; ++i, grid /= kStep) add(grid);
  std::sort(loads.begin(), loads.end());
  double low = fixed;
  for (const double load : loads) {
    cells_.push_back({low, fixed + load});
    low = fixed + load;
  }
  if (fixed + most * kAbove > low) cells_.push_back({low, fixed + most * kAbove});
}

void SequenceLp::MakeColumns() {
  const double fixed = model_.fixed / unit_;
  const double sequences = sequences_;
  int64_t tokens = 0;
  double excess = 0;
  for (const Class& q : classes_) excess += q.excess;
  for (const Class& q : classes_) tokens += static_cast<int64_t>(std::llround(q.tokens * token_unit_));
  const int64_t capacity = ranks_ * model_.tokens_per_rank;
  batches_ = program_.AddColumn(0, sequences, kAllBatches);
  program_.columns[static_cast<size_t>(batches_)].low = static_cast<double>((tokens + capacity - 1) / capacity);
  for (size_t q = 0; q < classes_.size() && q < kLongest; ++q) {
    auto& columns = longest_at_.emplace_back(static_cast<size_t>(levels_), -1);
    if (classes_[q].least != classes_[q].most) continue;
    for (int l = 0; l < levels_; ++l) {
      if (Holds(l, classes_[q].most))
        columns[static_cast<size_t>(l)] = program_.AddColumn(0, classes_[q].count, kDegree);
    }
  }
  for (Cell& cell : cells_) {
    cell.batches = program_.AddColumn(cell.low, sequences);
    cell.shorter = program_.AddColumn(0, sequences, kBatches);
    cell.beyond = program_.AddColumn(1, sequences * (cell.high - cell.low));
    cell.places.resize(static_cast<size_t>(levels_));
    for (int l = 0; l < levels_; ++l) {
      Place& place = cell.places[static_cast<size_t>(l)];
      place.tokens.assign(classes_.size(), -1);
      bool any = false;
      for (size_t q = 0; q < classes_.size(); ++q) {
        const int64_t least = classes_[q].least;
        if (!Holds(l, least) || fixed + Seconds(least, l) > cell.high * kAbove) continue;
        place.tokens[q] = program_.AddColumn(0, classes_[q].tokens);
        any = true;
      }
      if (!any) continue;
      place.groups = program_.AddColumn(0, sequences, kGroups);
      place.beyond = program_.AddColumn(0, sequences * (cell.high - cell.low));
      if (excess > 0) place.excess = program_.AddColumn(0, excess);
    }
  }
}

void SequenceLp::AddTotals() {
  double excess = 0;
  for (size_t q = 0; q < classes_.size(); ++q) {
    const int row = program_.AddRow(Sense::kEqual, classes_[q].tokens);
    for (const Cell& cell : cells_) {
      for (const Place& place : cell.places) {
        if (place.tokens[q] >= 0) program_.Add(row, place.tokens[q], 1);
      }
    }
    excess += classes_[q].excess;
  }
  if (excess > 0) {
    const int row = program_.AddRow(Sense::kEqual, excess);
    for (const Cell& cell : cells_) {
      for (const Place& place : cell.places) {
        if (place.excess >= 0) program_.Add(row, place.excess, 1);
      }
    }
  }
  const int batches = program_.AddRow(Sense::kEqual, 0);
  program_.Add(batches, batches_, -1);
  for (size_t j = 0; j < cells_.size(); ++j) {
    program_.Add(batches, cells_[j].batches, 1);
    const int shorter = program_.AddRow(Sense::kEqual, 0);
    program_.Add(shorter, cells_[j].shorter, 1);
    program_.Add(shorter, cells_[j].batches, -1);
    if (j > 0) program_.Add(shorter, cells_[j - 1].shorter, -1);
  }
  for (size_t q = 0; q < longest_at_.size(); ++q) {
    for (size_t l = 0; l < longest_at_[q].size(); ++l) {
      if (longest_at_[q][l] < 0) continue;
      const int row = program_.AddRow(Sense::kEqual, 0);
      program_.Add(row, longest_at_[q][l], -1);
      for (const Cell& cell : cells_) {
        if (cell.places[l].tokens[q] >= 0) program_.Add(row, cell.places[l].tokens[q], 1 / Rank(classes_[q].most));
      }
    }
  }
}

// What the groups of a place hold, do and last.
void SequenceLp::AddGroups(const Cell& cell, int level) {
  const Place& place = cell.places[static_cast<size_t>(level)];
  const int work = program_.AddRow(Sense::kAtLeast, 0);
  program_.Add(work, place.beyond, 1);
  program_.Add(work, place.groups, cell.low - model_.fixed / unit_);
  const int memory = program_.AddRow(Sense::kAtLeast, 0);
  program_.Add(memory, place.groups, Rank(model_.tokens_per_rank << level));
  const int excess = place.excess >= 0 ? program_.AddRow(Sense::kAtLeast, 0) : -1;
  if (place.excess >= 0) {
    program_.Add(work, place.excess, -1.0 / (1 << level));
    program_.Add(excess, place.excess, -1);
  }
  for (size_t q = 0; q < classes_.size(); ++q) {
    if (place.tokens[q] < 0) continue;
    program_.Add(work, place.tokens[q], -PerToken(classes_[q], level));
    program_.Add(memory, place.tokens[q], -1);
    const Class& c = classes_[q];
    if (excess >= 0 && c.most > c.least)
      program_.Add(excess, place.tokens[q],
                   model_.quadratic / unit_ * static_cast<double>(c.most - c.least) * token_unit_);
  }
  const int longest = program_.AddRow(Sense::kAtLeast, 0);
  program_.Add(longest, place.groups, cell.high - cell.low);
  program_.Add(longest, place.beyond, -1);
}

// How many long sequences a group has room for, by memory or by time: at most k of more than 1/(k+1) of it, each
// counted as often as it is longer. And a group that has one lasts as long as that one at least.
void SequenceLp::AddPacking(const Cell& cell, int level) {
  constexpr int kMost = 2;
  const Place& place = cell.places[static_cast<size_t>(level)];
  const auto weights = [&](int k, bool time) {
    std::vector<int> w(classes_.size(), 0);
    for (size_t q = 0; q < classes_.size(); ++q) {
      const int64_t least = classes_[q].least;
      if (place.tokens[q] < 0) continue;
      const double share = time ? TimeShare(least, level, cell) : MemoryShare(least, level);
      w[q] = std::clamp(static_cast<int>(std::ceil((k + 1) * share * kBelow)) - 1, 0, k);
    }
    return w;
  };
  const auto add = [&](int k, const std::vector<int>& w) {
    if (*std::max_element(w.begin(), w.end()) == 0) return;
    const int row = program_.AddRow(Sense::kAtLeast, 0);
    program_.Add(row, place.groups, k);
    for (size_t q = 0; q < classes_.size(); ++q) {
      if (w[q] > 0) program_.Add(row, place.tokens[q], -w[q] / Rank(classes_[q].most));
    }
  };
  for (int k = 1; k <= kMost; ++k) {
    const auto memory = weights(k, false), time = weights(k, true);
    add(k, memory);
    if (time != memory) add(k, time);
  }
  const int row = program_.AddRow(Sense::kAtLeast, 0);
  program_.Add(row, place.beyond, 1);
  const auto memory = weights(1, false), time = weights(1, true);
  for (size_t q = 0; q < classes_.size(); ++q) {
    if (memory[q] == 0 && time[q] == 0) continue;
    const double beyond = model_.fixed / unit_ + Seconds(classes_[q].least, level) - cell.low;
    if (beyond > 0) program_.Add(row, place.tokens[q], -beyond / Rank(classes_[q].most));
  }
}

// Groups share the ranks of their micro-batches; those of degree d and above only as many as are whole multiples of d.
void SequenceLp::AddRanks(const Cell& cell) {
  for (int l = 0; l < levels_; ++l) {
    const int most = ranks_ >> l;
    if (l > 0 && most << l == (ranks_ >> (l - 1)) << (l - 1)) continue;  // the row before says more
    const int groups = program_.AddRow(Sense::kAtLeast, 0), beyond = program_.AddRow(Sense::kAtLeast, 0);
    program_.Add(groups, cell.batches, most);
    program_.Add(beyond, cell.beyond, most);
    for (int k = l; k < levels_; ++k) {
      const Place& place = cell.places[static_cast<size_t>(k)];
      if (place.groups < 0) continue;
      program_.Add(groups, place.groups, -(1 << (k - l)));
      program_.Add(beyond, place.beyond, -(1 << (k - l)));
    }
  }
  const int high = program_.AddRow(Sense::kAtLeast, 0);
  program_.Add(high, cell.beyond, -1);
  program_.Add(high, cell.batches, cell.high - cell.low);
}

// A micro-batch that has one of the longest sequences is one, and lasts as long as that at least.
void SequenceLp::AddLongest(const Cell& cell) {
  constexpr size_t kRows = 8;
  for (size_t q = 0; q < classes_.size() && q < kRows; ++q) {
    const Class& c = classes_[q];
    const double count = c.count * Rank(c.most);
    const int batches = program_.AddRow(Sense::kAtLeast, 0), lasting = program_.AddRow(Sense::kAtLeast, 0);
    program_.Add(batches, cell.batches, 1);
    program_.Add(lasting, cell.beyond, 1);
    for (int l = 0; l < levels_; ++l) {
      const int tokens = cell.places[static_cast<size_t>(l)].tokens[q];
      if (tokens < 0) continue;
      program_.Add(batches, tokens, -1 / count);
      const double beyond = model_.fixed / unit_ + Seconds(c.least, l) - cell.low;
      if (beyond > 0) program_.Add(lasting, tokens, -beyond / count);
    }
  }
}

size_t SequenceLp::ClassOf(int64_t tokens) const {
  const auto at =
      std::partition_point(classes_.begin(), classes_.end(), [&](const Class& q) { return q.least > tokens; });
  return static_cast<size_t>(at - classes_.begin());
}

absl::StatusOr<std::vector<double>> SequenceLp::Values(const StepPlan& plan, absl::Span<const int32_t> lengths) const {
  std::vector<double> values(program_.columns.size(), 0);
  bool placed = true;
  const auto add = [&](int column, double value) {
    placed &= column >= 0;
    if (column >= 0) values[static_cast<size_t>(column)] += value;
  };
  for (const auto& batch : plan.micro_batches) {
    const double lasts = MicroBatchSeconds(batch, lengths, model_) / unit_;
    const auto cell =
        std::partition_point(cells_.begin(), cells_.end() - 1, [&](const Cell& c) { return c.high < lasts; });
    add(batches_, 1);
    add(cell->batches, 1);
    for (auto later = cell; later != cells_.end(); ++later) add(later->shorter, 1);
    add(cell->beyond, lasts - cell->low);
    for (const auto& group : batch.groups) {
      const auto level = static_cast<size_t>(std::countr_zero(static_cast<unsigned>(group.degree)));
      const Place& place = cell->places[level];
      add(place.groups, 1);
      add(place.beyond, lasts - cell->low);
      for (const int32_t k : group.sequences) {
        const int64_t tokens = lengths[static_cast<size_t>(k)];
        const size_t q = ClassOf(tokens);
        add(place.tokens[q], Rank(tokens));
        if (tokens > classes_[q].least) add(place.excess, Excess(tokens, classes_[q].least));
        if (q < longest_at_.size() && longest_at_[q][level] >= 0) add(longest_at_[q][level], 1);
      }
    }
  }
  if (!placed) return absl::InternalError("the linear program has no place for a sequence of the plan");
  return values;
}

absl::Status SequenceLp::Check(const StepPlan& plan, absl::Span<const int32_t> lengths, double bound) const {
  constexpr double kTolerance = 1e-9;  // of the size of what is summed up
  SHOAL_ASSIGN_OR_RETURN(const std::vector<double> values, Values(plan, lengths));
  std::vector<double> sums(program_.rows.size(), 0), sizes(program_.rows.size(), 1);
  double cost = 0;
  for (size_t j = 0; j < values.size(); ++j) {
    const auto& column = program_.columns[j];
    if (values[j] < column.low - kTolerance || values[j] > column.high * kAbove + kTolerance)
      return absl::InternalError(absl::StrCat("the plan has ", values[j], " of column ", j, ", which may be ",
                                              column.low, " to ", column.high));
    cost += column.cost * values[j];
    for (const auto& entry : column.entries) {
      sums[static_cast<size_t>(entry.row)] += entry.value * values[j];
      sizes[static_cast<size_t>(entry.row)] += std::abs(entry.value * values[j]);
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto& row = program_.rows[i];
    const double beyond = sums[i] - row.limit, most = kTolerance * (sizes[i] + std::abs(row.limit));
    if ((row.sense != Sense::kAtMost && beyond < -most) || (row.sense != Sense::kAtLeast && beyond > most))
      return absl::InternalError(
          absl::StrCat("the plan breaks row ", i, " of the linear program: ", sums[i], " against ", row.limit));
  }
  const double seconds = PlanCost(plan, lengths, model_);
  if (cost * unit_ > seconds * kAbove)
    return absl::InternalError(
        absl::StrCat("the linear program has the plan at ", cost * unit_, " s, and it takes ", seconds, " s"));
  if (bound > seconds * kAbove)
    return absl::InternalError(absl::StrCat("the bound of ", bound, " s is above the plan's own ", seconds, " s"));
  return absl::OkStatus();
}

absl::StatusOr<double> LpBound(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model,
                               absl::Span<const StepPlan* const> plans, int solves) {
  if (lengths.empty()) return 0;
  const SequenceLp lp(lengths, ranks, model);
  SHOAL_ASSIGN_OR_RETURN(const auto solver, MakeLinearSolver(lp.program()));
  SHOAL_ASSIGN_OR_RETURN(const IntegerBound bound, BoundIntegerProgram(lp.program(), *solver, solves));
  const double seconds = std::max(0.0, kBelow * bound.bound * lp.unit());
  for (const StepPlan* plan : plans) SHOAL_RETURN_IF_ERROR(lp.Check(*plan, lengths, seconds));
  return seconds;
}

}  // namespace shoal
