#include "optim/optimizer_state.h"

#include "absl/strings/str_cat.h"

namespace shoal {

OptimizerState::OptimizerState(const Optimizer& optimizer, absl::Span<OwnedPiece> owned, DeviceKind device)
    : kind_(optimizer.groups().traits.name),
      scalar_names_(optimizer.scalar_names()),
      scalars_(scalar_names_.size()),
      second_pass_bytes_(optimizer.second_pass_bytes()) {
  for (const OwnedPiece& piece : owned) {
    OptimizerPiece& mine =
        pieces_.emplace_back(OptimizerPiece{piece.param, piece.begin, piece.end, piece.master, piece.grad, {}});
    state_names_.push_back(optimizer.state_names(*piece.param));
    for (size_t i = 0; i < state_names_.back().size(); ++i)
      mine.state.push_back(Tensor::Zeros({piece.end - piece.begin}, optimizer.moment_type(), device));
  }
}

void OptimizerState::BeginUpdate(double batch_ratio, OptimizerStep& step) {
  ++updates_;
  time_ += batch_ratio;
  step.step = updates_;
  step.time = time_;
  step.batch_ratio = batch_ratio;
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
  for (const OptimizerPiece& piece : pieces_) {
    total += 2 * piece.master.bytes() + piece.grad.bytes() + piece.master.size() * second_pass_bytes_;
  }
  return total;
}

void OptimizerState::VisitState(StateVisitor& visitor) {
  visitor.Blob("optimizer.kind", kind_);
  visitor.Scalar("optimizer.updates", updates_);
  visitor.Scalar("optimizer.time", time_);
  for (size_t i = 0; i < scalars_.size(); ++i) visitor.Scalar(scalar_names_[i], scalars_[i]);
  for (size_t p = 0; p < pieces_.size(); ++p) {
    const OptimizerPiece& piece = pieces_[p];
    for (size_t i = 0; i < piece.state.size(); ++i) {
      const std::string name = absl::StrCat(piece.param->name, "/", state_names_[p][i]);
      visitor.TrueShape(name, piece.param->shape);
      visitor.Shard(name, piece.state[i], {{piece.param->size()}, {piece.begin}, {piece.end - piece.begin}});
    }
  }
}

}  // namespace shoal
