// Compression planner: chooses a codec for every layer under an error budget. L-GreCo (Markov et al., MLSys 2024), with
// squared errors in place of norms, and with time in place of bytes.
//
// Pure: no communication, no clock; equal inputs give equal plans on every rank (ties break by layer, then by option).
// Formulas: research/lgreco.md §6.1 (time), §6.2 (the budget that makes it a contraction), §6.3 (solver), §6.4
// (overlap).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace shoal {

// What one option does to one layer.
struct CompressionOption {
  double cost = 0;           // bytes or seconds, >= 0
  double error_squares = 0;  // of the aggregated gradient; 0: exact
};

struct CompressionProblem {
  // [layer][option]; every layer has the same options in the same order, options that do not apply have an infinite
  // cost. Option 0 is exact (error 0).
  std::vector<std::vector<CompressionOption>> layers;
  double budget = 0;          // limit of the sum of error_squares over layers
  std::vector<int> fallback;  // option of each layer of the user's uniform default: never worse than it. Empty: none
};

struct CompressionPlan {
  std::vector<int> option;  // of each layer
  double cost = 0, error_squares = 0;
  double bound = 0;   // no plan within the budget costs less (fractional relaxation)
  std::string notes;  // why it is the exact plan, or the fallback; empty otherwise
  double gap() const { return cost > 0 ? (cost - bound) / cost : 0; }
};

// The better of the hull greedy and the dynamic program, never worse than `fallback` where that is within the budget.
// All-exact, with a note, where nothing else is feasible. InvalidArgument names the layer and option of a number that
// is NaN or negative: callers keep their plan then.
absl::StatusOr<CompressionPlan> PlanCompression(const CompressionProblem& problem);

// Each solver by itself, for tests and benchmarks.
absl::StatusOr<CompressionPlan> PlanByHullGreedy(const CompressionProblem& problem);
absl::StatusOr<CompressionPlan> PlanByDynamicProgram(const CompressionProblem& problem, int buckets = 10000);

// When communication overlaps with backward.
struct OverlapProblem {
  CompressionProblem layers;           // costs in seconds
  std::vector<int> bucket_of;          // [layer] -> bucket, ascending order of readiness
  std::vector<double> ready;           // [bucket] -> seconds after the start of backward
  std::vector<double> bucket_seconds;  // [bucket] -> latency charged once however its layers are encoded
  double backward_end = 0;             // seconds; a step never ends before it
  double slack = 0.01;                 // share of the step given away for a smaller error
};

struct OverlapPlan : CompressionPlan {  // cost: seconds until the last bucket is there; bound: of it
  double exposed_seconds = 0;           // cost - backward_end
};

// Bisects the step's end over a suffix-time dynamic program, then takes the least error within `slack` of it; falls
// back to PlanCompression (sum of seconds) where that ends earlier.
absl::StatusOr<OverlapPlan> PlanWithOverlap(const OverlapProblem& problem);
// When the last bucket of a plan is there: max over k of ready[k] + the seconds of buckets k and later.
double StepEnd(const OverlapProblem& problem, absl::Span<const int> option);

// Fastest seconds per step that calibration predicts for a collective and a codec on this machine: see
// `shoal calibrate`. t = latency + bytes * seconds_per_byte.
struct LinearTime {
  double latency = 0, per_byte = 0;
  double operator()(double bytes) const { return latency + bytes * per_byte; }
};
struct ExchangeCosts {
  int ranks = 2;
  LinearTime all_to_all, all_gather, all_reduce;  // of the bytes that one rank holds
};
struct CodecCosts {
  LinearTime encode, decode;  // of f32 bytes
};
// Seconds of reducing `elements` through a byte codec whose code takes `code_bytes` for all of them: all-to-all and
// all-gather of codes, encode (1 + 1/N) and decode (2 - 1/N) times the elements. `latency` terms of the exchange are
// charged by the bucket, not here.
double ExchangeSeconds(const ExchangeCosts& exchange, const CodecCosts& codec, int64_t elements, double code_bytes);
// Seconds of a PowerSGD round of a [rows, columns] matrix: two all-reduces of factors and 8 n m r FLOPs.
double PowerSgdSeconds(const ExchangeCosts& exchange, double flops_per_second, int64_t rows, int64_t columns, int rank);

}  // namespace shoal
