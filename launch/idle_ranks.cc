#include "launch/idle_ranks.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/base/status.h"

namespace shoal {

Batch IdleBatch(const config::Job& job) {
  auto layout = std::make_shared<SeqLayout>();
  if (job.model().has_resnet()) {
    const auto& resnet = job.model().resnet();
    layout->labels = Tensor::Zeros({1}, DType::kI32);
    layout->labels.data<int32_t>()[0] = -1;
    layout->token_counters = Tensor::Zeros({1}, DType::kI64);
    return {Tensor::Zeros({1, resnet.image_size(), resnet.image_size(), resnet.channels()}, DType::kF32),
            std::move(layout)};
  }
  layout->cu_seqlens = {0};
  layout->positions = Tensor::Zeros({0}, DType::kI32);
  layout->labels = Tensor::Zeros({0}, DType::kI32);
  layout->token_counters = Tensor::Zeros({0}, DType::kI64);
  return {Tensor::Zeros({0}, DType::kI32), std::move(layout)};
}

absl::Status HeldOutTogether::ForEach(absl::FunctionRef<absl::Status(const Batch&)> fn) {
  if (most_ < 0) {
    double mine = 0;
    SHOAL_RETURN_IF_ERROR(workload_.ForHeldOut([&](const Batch&) {
      ++mine;
      return absl::OkStatus();
    }));
    SHOAL_ASSIGN_OR_RETURN(const auto most,
                           AllReduceValues(ranks_, {mine}, ReduceOp::kMax, {.tag = "held-out batches"}));
    most_ = static_cast<int64_t>(most[0]);
  }
  int64_t done = 0;
  SHOAL_RETURN_IF_ERROR(workload_.ForHeldOut([&](const Batch& batch) {
    ++done;
    return fn(batch);
  }));
  for (; done < most_; ++done) SHOAL_RETURN_IF_ERROR(fn(IdleBatch(job_)));
  return absl::OkStatus();
}

}  // namespace shoal
