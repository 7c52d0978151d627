// A bound on the seconds of any sequence plan by linear programming: tighter than BoundStep's and slower (0.1 to 0.3 s
// of 512 sequences on 64 ranks), so it is for `plan`, not for a step's path.
//
// The program is that of research/flexsp.md §6.5, tightened: plans by how many tokens of which class of lengths are in
// groups of which degree in micro-batches of about which length ("cells"), how many such groups and micro-batches there
// are, and how long they last in all. Every valid plan is a point of it that costs no more than the plan.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/linear_program.h"
#include "parallel/sequence_plan.h"

namespace shoal {

class SequenceLp {
 public:
  // `lengths` has passed CheckLengths and is not empty; nothing is kept of the arguments but copies.
  SequenceLp(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model);

  const LinearProgram& program() const { return program_; }
  double unit() const { return unit_; }  // seconds of one of the program's cost: about 1 is the best plan's
  // The columns of a plan of these lengths that has passed ValidatePlan. Internal: the program has no place for it.
  absl::StatusOr<std::vector<double>> Values(const StepPlan& plan, absl::Span<const int32_t> lengths) const;
  // Internal: this valid plan is no point of the program, or none that costs as much, or takes less than `bound`
  // seconds. Then the bound is worth nothing, whatever made it.
  absl::Status Check(const StepPlan& plan, absl::Span<const int32_t> lengths, double bound) const;

 private:
  struct Class {  // sequences of lengths in [least, most]
    int64_t least = 0, most = 0;
    int count = 0;
    double tokens = 0, excess = 0;  // in token_unit_; rank-seconds, in unit_, beyond those at the rate of `least`
  };
  // What a class may be in: columns, -1 where there is none.
  struct Place {
    std::vector<int> tokens;  // of each class
    int excess = -1, groups = -1, beyond = -1;
  };
  struct Cell {  // micro-batches of more than `low` and at most `high` units
    double low = 0, high = 0;
    int batches = -1, beyond = -1;   // columns: how many, and what they last beyond `low` in all
    int shorter = -1;                // column: how many are in this cell and those before
    std::vector<Place> places = {};  // of each level
  };

  double Seconds(int64_t tokens, int level) const { return model_.Seconds(tokens, 1 << level) / unit_; }
  double Rank(int64_t tokens) const { return static_cast<double>(tokens) / token_unit_; }
  double PerToken(const Class& q, int level) const;    // units of time per unit of tokens, at the rate of `least`
  double Excess(int64_t tokens, int64_t least) const;  // rank-seconds, in unit_, beyond that rate
  bool Holds(int level, int64_t tokens) const { return (model_.tokens_per_rank << level) >= tokens; }
  double Shortest(int64_t tokens) const;  // over levels that hold it
  // How many of these fit in a group by memory and in a cell by time, as a share of it each takes.
  double MemoryShare(int64_t tokens, int level) const;
  double TimeShare(int64_t tokens, int level, const Cell& cell) const;

  void MakeClasses(absl::Span<const int32_t> lengths);
  void MakeCells(absl::Span<const int32_t> lengths);
  void MakeColumns();
  void AddTotals();
  void AddGroups(const Cell& cell, int level);
  void AddPacking(const Cell& cell, int level);
  void AddRanks(const Cell& cell);
  void AddLongest(const Cell& cell);
  size_t ClassOf(int64_t tokens) const;

  int ranks_, levels_, sequences_;
  SequenceCostModel model_;
  double unit_ = 1, token_unit_ = 1;
  std::vector<Class> classes_;  // from the longest to the shortest
  std::vector<Cell> cells_;     // from the shortest to the longest
  int batches_ = -1;            // column: micro-batches in all
  std::vector<std::vector<int>>
      longest_at_;  // columns: sequences of one of the longest classes at each level; -1: none
  LinearProgram program_;
};

// Seconds that no plan of these lengths beats, proven by weak duality of at most `solves` linear programs; 0 of an
// empty batch. Equal arguments give equal bounds. `lengths` has passed CheckLengths, and `plans` ValidatePlan: the
// bound is held against each of them. Unimplemented: this build has no solver, with what to install. Internal: it
// failed, or SequenceLp::Check's of a plan.
absl::StatusOr<double> LpBound(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model,
                               absl::Span<const StepPlan* const> plans = {}, int solves = 9);

}  // namespace shoal
