// The plan of a step on its way: as bytes from rank 0 to all ranks, refused unless they are whole and of this step and
// batch; and as a line of runs/<name>/plans/sequences.jsonl, from which a run is replayed.
//
// Bytes, little endian: magic, version, kind (a plan, or why there is none), step, batch hash, body, and last the hash
// of all that precedes it: FNV-1a's steps are bijections, so a changed bit or byte is found for certain.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "parallel/sequence_plan.h"

namespace shoal {

// All that is known of the plan of one step.
struct SequencePlanRecord {
  int64_t step = 0;
  int64_t first_position = 0;  // of the batch, in the sampler's order
  uint64_t batch_hash = 0;     // BatchHash
  std::string planner = {};    // of SequencePlanners()
  std::string tier = {};       // "tier0", "full" (the planner's own plan) or "replayed"
  std::string source = {};     // when it was made: "ahead", "waited" (ahead, but the step had to wait) or "inline"
  StepPlan plan = {};
  double planned_seconds = 0;          // PlanCost of the model that it was made with
  double bound = 0;                    // seconds that no plan beats, of the same model
  double plan_ms = 0;                  // processor time that making it took
  double exposed_ms = 0;               // that rank 0 had no plan and the step stood still
  std::vector<double> predicted = {};  // seconds of each micro-batch, of the model at the step's begin
  double predicted_step = 0;           // seconds: the sum of these and what a step takes outside of micro-batches
  std::vector<int32_t> lengths = {};   // tokens of each sequence of the batch; not in bytes: every rank has its own
  std::vector<double> measured = {};   // like predicted, once the step is over; not in bytes
  double measured_step = -1;           // likewise; < 0: not yet

  double gap() const { return planned_seconds > 0 ? (planned_seconds - bound) / planned_seconds : 0; }
  // "<2,1x2> <1x4>".
  std::string Text() const { return plan.Text(); }
  bool operator==(const SequencePlanRecord&) const = default;
};

// Of a batch that begins at this position with these lengths; equal on every platform and release.
uint64_t BatchHash(int64_t first_position, absl::Span<const int32_t> lengths);

// What rank 0 broadcasts: a record without lengths and what was measured, or the error in place of a plan.
std::string PlanBytes(const SequencePlanRecord& record);
std::string PlanErrorBytes(const absl::Status& error, int64_t step, uint64_t batch_hash);
// DataLoss: damaged, with what is wrong. FailedPrecondition: of another version, step (stale), or batch. Or the error
// that PlanErrorBytes was given. Whether the plan is valid for the batch is ValidatePlan's.
absl::StatusOr<SequencePlanRecord> PlanFromBytes(absl::string_view bytes, int64_t step, uint64_t batch_hash);

// One line, without its end. Holds everything, and the plan's and the batch's hash as hexadecimal text.
std::string PlanJson(const SequencePlanRecord& record);
// DataLoss: no such line, or lengths or a plan that are not those of their hashes.
absl::StatusOr<SequencePlanRecord> PlanFromJson(absl::string_view line);

}  // namespace shoal
