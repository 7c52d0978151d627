// OptimizerState: the moments of this rank's pieces, and the count of updates.
#pragma once

#include <vector>

#include "optim/optimizer.h"
#include "parallel/data_parallel.h"
#include "parallel/state.h"

namespace shoal {

class OptimizerState : public Stateful {
 public:
  // Zeroed moments for every piece of `owned` (views; DataParallel outlives it).
  OptimizerState(const Optimizer& optimizer, absl::Span<OwnedPiece> owned, DeviceKind device);
  absl::Span<OptimizerPiece> pieces() { return absl::MakeSpan(pieces_); }
  int64_t updates = 0;  // steps that changed the weights
  int64_t bytes() const;
  int64_t update_bytes() const;  // that one update reads and writes: moments, masters, gradients
  // Moments as "<parameter>/<state name>", by box of the flattened tensor.
  void VisitState(StateVisitor& visitor) override;

 private:
  std::vector<std::string> names_;
  std::vector<OptimizerPiece> pieces_;
};

}  // namespace shoal
