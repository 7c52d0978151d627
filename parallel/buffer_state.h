// BufferState: a model's buffers (batch norm's running statistics) as state of a run.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "parallel/state.h"
#include "runtime/module/param.h"

namespace shoal {

class BufferState : public Stateful {
 public:
  // `buffers` are the model's, which outlives it.
  explicit BufferState(std::vector<Buffer*> buffers) : buffers_(std::move(buffers)) {}
  // Before every step, and instead of AverageOverRanks after one that is skipped: what its forward made of the buffers
  // (not numbers, perhaps) is undone.
  void Remember();
  void Restore();
  // Collective, after every step that counts: each buffer becomes its mean over ranks, so that all ranks hold the same.
  // Running averages are linear, so this is what the ranks' own averages would give at the end.
  absl::Status AverageOverRanks(Communicator& comm);
  // Each as a whole tensor under its name.
  void VisitState(StateVisitor& visitor) override;

 private:
  void Gather();
  void Scatter(float scale);
  std::vector<Buffer*> buffers_;
  Tensor flat_;  // all of them one after the other; made at first use
};

}  // namespace shoal
