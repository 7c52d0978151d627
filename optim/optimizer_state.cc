#include "optim/optimizer_state.h"

#include "absl/strings/str_cat.h"

namespace shoal {

OptimizerState::OptimizerState(const Optimizer& optimizer, absl::Span<OwnedPiece> owned, DeviceKind device)
    : names_(optimizer.state_names()) {
  for (const OwnedPiece& piece : owned) {
    OptimizerPiece& mine =
        pieces_.emplace_back(OptimizerPiece{piece.param, piece.begin, piece.end, piece.master, piece.grad, {}});
    for (size_t i = 0; i < names_.size(); ++i)
      mine.state.push_back(Tensor::Zeros({piece.end - piece.begin}, DType::kF32, device));
  }
}

int64_t OptimizerState::bytes() const {
  int64_t total = 0;
  for (const OptimizerPiece& piece : pieces_) {
    for (const Tensor& state : piece.state) total += state.bytes();
  }
  return total;
}

int64_t OptimizerState::update_bytes() const {
  int64_t total = 2 * bytes();
  for (const OptimizerPiece& piece : pieces_) total += 2 * piece.master.bytes() + piece.grad.bytes();
  return total;
}

void OptimizerState::VisitState(StateVisitor& visitor) {
  visitor.Scalar("optimizer.updates", updates);
  for (OptimizerPiece& piece : pieces_) {
    for (size_t i = 0; i < names_.size(); ++i) {
      const std::string name = absl::StrCat(piece.param->name, "/", names_[i]);
      visitor.TrueShape(name, piece.param->shape);
      visitor.Shard(name, piece.state[i], {{piece.param->size()}, {piece.begin}, {piece.end - piece.begin}});
    }
  }
}

}  // namespace shoal
