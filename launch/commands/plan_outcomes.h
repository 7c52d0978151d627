// What planners made of batches of lengths, side by side: what `plan --lengths` and `plan --cluster` have in common.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/commands/plan_lengths.h"
#include "parallel/sequence_planner.h"

namespace shoal {

// What is asked for beside the planners' own plans: bounds by linear programs (parallel/sequence_lp.h) for all of them,
// and a plan that the default planner searched ten times as long for.
enum class PlanBounds : uint8_t { kQuick, kLp, kSearch };

// Of one planner.
struct PlanOutcome {
  std::string name;  // the planner's, "flexsp_x10" of the long search
  const SequencePlanner* planner = nullptr;
  std::vector<PlannedStep> steps;  // of each batch
  std::vector<double> plan_seconds;
  absl::Status status;  // of the first batch that it does not apply to

  // Of value(0), value(1), ..: of each batch.
  template <typename Value>
  double Mean(const Value& value) const {
    double sum = 0;
    for (size_t i = 0; i < steps.size(); ++i) sum += value(i);
    return steps.empty() ? 0 : sum / static_cast<double>(steps.size());
  }
};

struct PlannerChoice {
  std::string name;  // empty: all
  int degree = 0;    // of planner static; 0: the best
  PlanBounds bounds = PlanBounds::kQuick;
};
// The planners that are chosen, the default first: ratios are to it, and its errors are ours. With kSearch the long
// search comes second: of every batch the better of its plan and the default's.
// Checks every batch before: an error has the file, and the line where it has lines.
absl::StatusOr<std::vector<PlanOutcome>> ComparePlanners(const PlannerChoice& choice, const std::string& file,
                                                         const LengthBatches& read, int ranks,
                                                         const SequenceCostModel& model);

// Bounds by linear programs of a comparison.
struct LpBounds {
  std::vector<double> seconds;           // that each batch's took
  std::map<size_t, std::string> errors;  // why a batch has none; its gaps are unknown
  double Mean() const;                   // of seconds
};
// Adds them to the bounds of every plan. A bound that a plan contradicts is dropped, an error of its batch.
// Unimplemented: this build has no solver.
absl::StatusOr<LpBounds> AddLpBounds(const LengthBatches& read, int ranks, const SequenceCostModel& model,
                                     std::vector<PlanOutcome>& outcomes);
// "gap unknown of 1 of 10 batches: batch 3: ..", a line; empty without errors.
std::string ErrorsText(const LpBounds& bounds);

// "FILE: 10 batches of 512, ..; mean 1014 tokens, longest 40000; 3 longer ones are left out".
std::string LengthsText(const LengthBatches& read);

// By planner: of every batch seconds, bound, gap (null: unknown), time to plan, and the plan.
nlohmann::json OutcomesJson(const std::vector<PlanOutcome>& outcomes, const LpBounds& bounds = {});

}  // namespace shoal
