// Compression planner: chooses a codec for every layer under an error budget. L-GreCo (Markov et al., MLSys 2024), with
// squared errors in place of norms, and with time in place of bytes where a time model is given.
//
// Pure: no communication, no clock; equal inputs give equal plans (ties break by layer, then by option).
// Formulas: research/lgreco.md §6.1 (time), §6.2 (why squares: they make the whole model's codes a contraction), §6.3
// (solver), §6.4 (overlap).
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace shoal {

// What one option does to one layer.
struct CompressionOption {
  double cost = 0;           // bytes or seconds, >= 0; infinite: does not apply to this layer
  double error_squares = 0;  // of the aggregated gradient; 0: exact
};

struct CompressionProblem {
  // [layer][option]. Options that do not apply to a layer cost infinity; option 0 applies to all.
  std::vector<std::vector<CompressionOption>> layers;
  double budget = 0;          // limit of the sum of error_squares over layers
  std::vector<int> fallback;  // option of each layer of the user's uniform default: never worse than it. Empty: none
};

struct CompressionPlan {
  std::vector<int> option;  // of each layer
  double cost = 0, error_squares = 0;
  double bound = 0;   // no plan within the budget costs less
  std::string notes;  // why it is the exact plan, or the fallback; empty otherwise
  double gap() const { return cost > 0 ? (cost - bound) / cost : 0; }
};

// The best of the hull greedy, the dynamic program and, where few plans are left to look at, the optimum; never worse
// than `fallback` where that is within the budget. FailedPrecondition where no plan is within the budget: callers send
// gradients as they are. InvalidArgument names the layer and option of a number that is NaN or negative: callers keep
// their plan then.
absl::StatusOr<CompressionPlan> PlanCompression(const CompressionProblem& problem);

// Each solver by itself, for tests and benchmarks. The dynamic program rounds errors up to budget / `buckets`, its
// bound is the hull greedy's.
absl::StatusOr<CompressionPlan> PlanByHullGreedy(const CompressionProblem& problem);
absl::StatusOr<CompressionPlan> PlanByDynamicProgram(const CompressionProblem& problem, int buckets = 5000);

// When communication overlaps with backward. Buckets count one after the other, in order of readiness: where two are
// under way at once, seconds are those by which each puts off the last.
struct OverlapProblem {
  CompressionProblem layers;           // costs in seconds
  std::vector<int> bucket_of;          // [layer] -> bucket
  std::vector<double> ready;           // [bucket], not descending: seconds after the start of backward
  std::vector<double> bucket_seconds;  // [bucket] -> charged once however its layers are encoded
  double backward_end = 0;             // seconds; a step never ends before it
  double slack = 0.01;                 // share of the step given away for a smaller error
  // [layer][option] seconds by which its exchange puts off computing, for want of a core of its own; empty: none.
  std::vector<std::vector<double>> stolen = {};
};

struct OverlapPlan : CompressionPlan {  // cost: seconds until the last bucket is there; bound: of it
  double exposed_seconds = 0;           // of it, what is left when backward is over
};

// The best of: a suffix-time dynamic program under bisection, PlanCompression (the sum of seconds), the fallback, and
// every uniform choice of one option within the budget; then the least error within `slack` of it.
absl::StatusOr<OverlapPlan> PlanWithOverlap(const OverlapProblem& problem);
// When backward is over, and when the last bucket of a plan is there, too: max over k of ready[k] + the seconds of
// buckets k and later. What bucket k steals from backward, while that goes on, puts off what becomes ready after it.
struct StepTimes {
  double backward_end = 0, end = 0;
  double exposed() const { return end - backward_end; }
};
StepTimes TimesOf(const OverlapProblem& problem, absl::Span<const int> option);
double StepEnd(const OverlapProblem& problem, absl::Span<const int> option);

}  // namespace shoal
