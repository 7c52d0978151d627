// SequenceControl: the sequence plans of a run. Rank 0 makes them ahead of time (PlansAhead); at the begin of a step it
// broadcasts the plan, every rank checks it and all agree on it; at its end all fit the cost model to what groups took.
//
// Refit on every rank, of inputs that are equal on all: so state is equal on all ranks as checkpoints want it, and any
// rank may be rank 0 of the next epoch. Only rank 0's model makes plans and predictions, which travel with the plan:
// were a model to differ, records and plans still would not.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/mesh.h"
#include "parallel/sequence_cost_fit.h"
#include "parallel/sequence_plan_ahead.h"
#include "parallel/sequence_plan_text.h"
#include "parallel/state.h"

namespace shoal {

class SequenceControl : public Stateful {
 public:
  using Plans = PlansAhead::Plans;
  struct Options {
    std::string planner = "flexsp";  // of SequencePlanners()
    int degree = 0;                  // of planner static: this one; 0: the best
    Plans plans = Plans::kLive;      // kDeterministic: two runs make the same plans; the model stays as it is
    SequenceCostModel model = {};    // at the start; a checkpoint's coefficients take its place, not its memory
    uint64_t seed = 0;
    int tries = 0;  // see SequencePlanRequest
    int ahead = 2;  // batches that plans are made ahead
    // Rank 0's: plans of a recorded run, taken in place of new ones in steps of their numbers.
    std::vector<SequencePlanRecord> replay = {};
    // Tests damage here what a rank received.
    std::function<void(int64_t step, std::string& bytes)> received = {};
  };
  // `mesh` outlives it. `upcoming` is rank 0's; the others may leave it empty.
  SequenceControl(Options options, Mesh& mesh, UpcomingBatch upcoming);

  // The plan of step `step`, whose batch begins at `first_position`; any order of steps and positions will do, plans
  // ahead are of use only where positions follow each other. Collective over mesh.control(): a broadcast and an
  // all-reduce; a gather more if it fails. Valid until the next call.
  // Errors are the same on all ranks: CheckLengths's and the planner's; or, with the ranks that say so, DataLoss of a
  // damaged plan and FailedPrecondition of one of another step or batch, one that is not valid, or ranks that disagree.
  absl::StatusOr<const SequencePlanRecord*> BeginStep(int64_t step, int64_t first_position,
                                                      absl::Span<const int32_t> lengths);
  // After the step: seconds of forward and backward by [micro-batch][rank], and of the whole step on its slowest rank;
  // all equal on every rank. Of a group counts the rank that took the least: the others waited for it, from a
  // micro-batch before. World-wide collectives in a micro-batch (ZeRO 3) are to be left out: short groups wait in them
  // for long ones. Fits the model, but for the first kWarmUpSteps since this object was made, which pay for what
  // happens once. Not collective.
  static constexpr int kWarmUpSteps = 2;
  void EndStep(absl::Span<const double> group_seconds, double step_seconds);

  // What the last BeginStep's broadcast, check and agreement took on this rank, waiting for others included. The rank
  // that comes last to them waits for none, so the least of all ranks is what plans cost them.
  double exchange_seconds() const { return exchange_seconds_; }

  // Of the last BeginStep; measured times too once its EndStep is over. PlanJson of it is a line of sequences.jsonl.
  const SequencePlanRecord& record() const { return record_; }
  const SequenceCostModel& model() const { return fit_.model(); }
  SequenceCostFit::Errors errors() const { return fit_.errors(); }
  double outside() const { return fit_.outside(); }

  // Model, fit and errors: a resumed run with deterministic plans plans as if it had never stopped.
  void VisitState(StateVisitor& visitor) override;

  // Rank 0: until all plans ahead are made.
  void WaitForPlansAheadForTest();

 private:
  // Rank 0's.
  absl::StatusOr<SequencePlanRecord> MakePlan(int64_t step, int64_t first_position, absl::Span<const int32_t> lengths,
                                              uint64_t batch_hash);
  absl::StatusOr<SequencePlanRecord> Check(absl::string_view bytes, int64_t step, uint64_t batch_hash,
                                           absl::Span<const int32_t> lengths) const;
  absl::Status Agree(const absl::StatusOr<SequencePlanRecord>& record, int64_t step);

  const Options options_;
  Mesh& mesh_;
  SequenceCostFit fit_;
  SequenceCostModel planning_;         // fit_'s model when plans were last made anew
  std::unique_ptr<PlansAhead> ahead_;  // rank 0's
  SequencePlanRecord record_;
  double exchange_seconds_ = 0;
  int steps_ = 0;  // since the start
};

}  // namespace shoal
