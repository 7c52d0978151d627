// Sequence planners: cut a batch of sequences into micro-batches of sequence-parallel groups so that the step is as
// short as the cost model allows. In training a SequenceControl asks them, ahead of each step.
//
// Pure: no communication, no clock; equal requests give equal plans on every rank (ties break by position in the batch;
// searches end after a number of tries, never by the clock).
// Algorithms: research/flexsp.md §6.3 (tier 0), §6.4 (tier 1), one joint problem over micro-batches in place of
// FlexSP's sort, then chunk, then solve.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "parallel/sequence_plan.h"

namespace shoal {

struct SequencePlanRequest {
  absl::Span<const int32_t> lengths = {};    // tokens of each sequence, each >= 1; not owned
  int ranks = 1;                             // any number
  const SequenceCostModel* model = nullptr;  // not owned
  int tries = 0;                             // of tier 1: how often it packs the whole batch; 0: SearchTries
  uint64_t seed = 0;                         // of tier 1's search
  int degree = 0;                            // of planner static: this one; 0: the best that holds model.longest
};

// A planner may take for granted that the lengths have passed CheckLengths and that there is at least one.
struct SequencePlanner {
  const char* name = "";
  const char* summary = "";
  absl::StatusOr<StepPlan> (*plan)(const SequencePlanRequest& request) = nullptr;
  bool one_degree = false;  // in all of a batch: one that divides the ranks
};
// The table of planners; the first is the default. A new one is a function in a file of its own and a row there.
absl::Span<const SequencePlanner> SequencePlanners();

struct PlannedStep {
  StepPlan plan;
  double seconds = 0;  // PlanCost
  StepBounds bounds;
  double bound() const { return bounds.best(); }                                        // no plan is faster
  double gap() const { return seconds > 0 ? (seconds - bounds.best()) / seconds : 0; }  // share of `seconds`
};

// Checks the lengths, plans, and validates the plan whoever made it. An empty batch has an empty plan.
// InvalidArgument: CheckLengths's, an unknown planner (names the nearest), or a planner that does not apply to these
// ranks and lengths. Internal: the plan is wrong, or beats the bound, and why.
absl::StatusOr<PlannedStep> PlanSequences(const SequencePlanRequest& request, absl::string_view planner = "flexsp");

// 2,000 for 512 sequences on 64 ranks, fewer of larger batches: about 40 ms.
int SearchTries(size_t sequences, int ranks);

// The planners of the table.
absl::StatusOr<StepPlan> PlanFlexSp(const SequencePlanRequest& request);          // tier 0, then tier 1's search
absl::StatusOr<StepPlan> PlanTier0(const SequencePlanRequest& request);           // deadlines in chunks, and baselines
absl::StatusOr<StepPlan> PlanStaticDegree(const SequencePlanRequest& request);    // one degree that holds model.longest
absl::StatusOr<StepPlan> PlanDegreePerBatch(const SequencePlanRequest& request);  // the best degree for this batch
absl::StatusOr<StepPlan> PlanSortAndChunk(const SequencePlanRequest& request);    // the paper's pipeline
absl::StatusOr<StepPlan> PlanGreedy(const SequencePlanRequest& request);          // Megatron's, by s^2 / degree
absl::StatusOr<StepPlan> PlanInOrder(const SequencePlanRequest& request);         // no planning

}  // namespace shoal
