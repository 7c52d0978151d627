#include "parallel/buffer_state.h"

#include <algorithm>

#include "runtime/base/status.h"

namespace shoal {

void BufferState::Gather() {
  if (!flat_.defined()) {
    int64_t size = 0;
    for (const Buffer* buffer : buffers_) size += buffer->value.size();
    flat_ = Tensor::Zeros({size}, DType::kF32);
  }
  float* at = flat_.data<float>();
  for (const Buffer* buffer : buffers_) at = std::copy_n(buffer->value.data<float>(), buffer->value.size(), at);
}

void BufferState::Scatter(float scale) {
  const float* from = flat_.data<float>();
  for (Buffer* buffer : buffers_) {
    float* to = buffer->value.data<float>();
    for (int64_t i = 0; i < buffer->value.size(); ++i) to[i] = *from++ * scale;
  }
}

void BufferState::Remember() {
  if (!buffers_.empty()) Gather();
}
void BufferState::Restore() {
  if (!buffers_.empty()) Scatter(1);
}

absl::Status BufferState::AverageOverRanks(Communicator& comm) {
  if (comm.size() == 1 || buffers_.empty()) return absl::OkStatus();
  Gather();
  SHOAL_RETURN_IF_ERROR(comm.AllReduce(flat_, ReduceOp::kSum, {.tag = "running statistics"})->Wait());
  Scatter(1.0f / static_cast<float>(comm.size()));
  return absl::OkStatus();
}

void BufferState::VisitState(StateVisitor& visitor) {
  for (Buffer* buffer : buffers_) visitor.Shard(buffer->name, buffer->value, WholeBox(buffer->value.shape()));
}

}  // namespace shoal
