// Workload: what a job trains on, as batches that modules take; one interface over text and images.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "launch/job.pb.h"
#include "parallel/sequence_plan.h"
#include "parallel/sequence_shard.h"
#include "runtime/data/loader.h"
#include "runtime/module/module.h"

namespace shoal {

// One step's inputs of one rank.
struct StepInputs {
  int64_t next_position = 0;     // of the sampler, after this step
  int64_t units = 0;             // predictions or images of the step over all ranks: what the loss sum is divided by
  std::vector<int32_t> lengths;  // of all sequences of the global batch; empty for images
  std::vector<Batch> micro;      // this rank's, as many on every rank; x undefined: none for this rank
};

// How the sequences of a plan's groups are spread over their ranks (parallel.sequence).
struct SequenceSpreading {
  const Mesh* mesh = nullptr;  // not owned
  SequenceMode mode = SequenceMode::kAuto;
  int64_t heads = 1;
  SequenceCostModel costs;  // for what is planned once: evaluation
};

// Which ranks share a workload's batches, and where in the run they begin.
struct WorkloadStart {
  int rank = 0, ranks = 1;
  int64_t position = 0;
  const SequenceSpreading* sequences = nullptr;  // null: every sequence is one rank's. Outlives the workload
};

class Workload {
 public:
  enum class Unit : uint8_t { kTokens, kImages };
  virtual ~Workload() = default;
  virtual Unit unit() const = 0;
  // What was opened, held out, cut and dropped, for the log.
  virtual std::string Summary() const = 0;
  virtual int64_t epoch_samples() const = 0;

  // Begins to make batches ahead. Errors of the job that only its data show.
  virtual absl::Status Start(const WorkloadStart& start) = 0;
  // The next step of `batch` in the unit of global_batch, in order; waits for the prefetch threads, above all when the
  // batch is not the last call's. The batches are valid until the next call. Errors of data that show only when they
  // are read.
  virtual absl::StatusOr<StepInputs> Next(int64_t batch) = 0;
  // With WorkloadStart::sequences Next leaves `micro` empty, and this fills it: the last batch as `plan` has it.
  virtual void Spread(const StepPlan& plan, StepInputs& inputs);
  // What Next would say of a batch at a position, but for `micro`. From any thread, after Start. Both are of text only.
  virtual StepInputs Upcoming(int64_t first_position, int64_t batch) const;
  // Calls fn with every held-out batch of this rank (of the WorkloadStart), the same ones each time; ranks together see
  // all of eval.max_tokens (images: max_images) exactly once. Where sequences are spread, x is undefined in a
  // micro-batch that has none for this rank. The first error ends it.
  virtual absl::Status ForHeldOut(absl::FunctionRef<absl::Status(const Batch&)> fn) = 0;
};

// The workload of a resolved job: opens its data. DataLoss and NotFound name what is wrong where.
absl::StatusOr<std::unique_ptr<Workload>> OpenWorkload(const config::Job& job);

// Token ids i32 [T] with their layout (positions, shifted labels, dropout counters). Views nothing of `micro`.
Batch ToBatch(const MicroBatch& micro, std::shared_ptr<const SequenceShard> shard = nullptr);

// The shape of one micro-batch: what a dry run needs.
struct BatchShape {
  std::vector<int32_t> cu_seqlens;  // of text
  std::vector<int64_t> images;      // N, H, W, C; empty: text
  SequenceSpread spread = {};       // of more than one rank: cu_seqlens are the group's, rows those of its first rank
};
BatchShape ShapeOf(const Batch& batch);
// The same on the meta device.
Batch OnMeta(const BatchShape& shape);
// The largest micro-batch of a rank, however the batch grows: full of sequences of data.max_tokens, or of images. Where
// sequences are spread, in a group of each degree.
std::vector<BatchShape> LargestMicroBatches(const config::Job& job, int ranks);
// A rank's micro-batches of one step when every sequence has data.max_tokens.
std::vector<BatchShape> FullBatch(const config::Job& job, int ranks);

}  // namespace shoal
