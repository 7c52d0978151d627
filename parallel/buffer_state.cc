#include "parallel/buffer_state.h"

#include <algorithm>

#include "runtime/base/status.h"

namespace shoal {

absl::Status BufferState::AverageOverRanks(Communicator& comm) {
  if (comm.size() == 1 || buffers_.empty()) return absl::OkStatus();
  if (!flat_.defined()) {
    int64_t size = 0;
    for (const Buffer* buffer : buffers_) size += buffer->value.size();
    flat_ = Tensor::Zeros({size}, DType::kF32);
  }
  float* at = flat_.data<float>();
  for (const Buffer* buffer : buffers_) at = std::copy_n(buffer->value.data<float>(), buffer->value.size(), at);
  SHOAL_RETURN_IF_ERROR(comm.AllReduce(flat_, ReduceOp::kSum, {.tag = "running statistics"})->Wait());
  const float* from = flat_.data<float>();
  const float share = 1.0f / static_cast<float>(comm.size());
  for (Buffer* buffer : buffers_) {
    float* to = buffer->value.data<float>();
    for (int64_t i = 0; i < buffer->value.size(); ++i) to[i] = *from++ * share;
  }
  return absl::OkStatus();
}

void BufferState::VisitState(StateVisitor& visitor) {
  for (Buffer* buffer : buffers_) visitor.Shard(buffer->name, buffer->value, WholeBox(buffer->value.shape()));
}

}  // namespace shoal
