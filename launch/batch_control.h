// BatchControl: how large each step's global batch is. Constant, or grown by the gradient noise that is measured
// between groups of samples: ranks, the micro-batches of a lone rank, or with ZeRO 2 and 3, which reduce each of them,
// all micro-batches of all ranks (optim.batch_growth; optim/batch_size.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "launch/job.pb.h"
#include "optim/batch_size.h"
#include "optim/gradient_parts.h"
#include "parallel/data_parallel.h"
#include "parallel/state.h"
#include "runtime/base/thread_pool.h"
#include "runtime/module/module.h"
#include "runtime/obs/step_record.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// What is wrong with optim.batch_growth in this job, a line each that begins with a field. `ranks` 0: unknown.
absl::Status CheckBatchGrowth(const config::Job& job, int ranks);

class BatchControl : public Stateful {
 public:
  // `grads` of this rank, views; `job` is resolved, CheckBatchGrowth has passed it, and it outlives this.
  BatchControl(const config::Job& job, int ranks, absl::Span<const Tensor> grads, DeviceKind device = DeviceKind::kCpu);
  // Of the next step, in the unit of global_batch.
  int64_t batch() const;
  // Of state that is loaded: InvalidArgument where a batch that grew on other ranks has no equal shares on these, and
  // the model needs them.
  absl::Status CheckShares() const;
  int64_t bytes() const { return parts_ == nullptr ? 0 : parts_->bytes(); }

  // --- One step, where `dp` has begun it: BeginStep; after each micro-batch EndMicroBatch; after the reductions Terms,
  // which ranks add up; then Update, unless the step is skipped.
  void BeginStep(int64_t step, DataParallel& dp, ThreadPool& pool);
  void EndMicroBatch(const Batch& batch, ThreadPool& pool);
  NoiseTerms Terms(const DataParallel& dp) const;
  // Fills in the record's noise scale. Returns what there is to say: that the batch grows, that it is larger than
  // helps.
  absl::StatusOr<std::string> Update(const NoiseTerms& terms_of_all, double squared_norm, StepRecord& record);

  void VisitState(StateVisitor& visitor) override;

 private:
  const config::Job& job_;
  const int ranks_;
  std::unique_ptr<BatchGrowth> growth_;   // null: the batch is constant
  std::unique_ptr<GradientParts> parts_;  // of a lone rank
  bool measures_ = false;                 // in this step
  const DataParallel* each_ = nullptr;    // measures every micro-batch's gradient by itself; null: the step's
  double samples_ = 0;                    // of this rank in this step
  NoiseTerms terms_;
  bool warned_ = false;
};

}  // namespace shoal
