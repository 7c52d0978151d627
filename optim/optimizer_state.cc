#include "optim/optimizer_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace shoal {

OptimizerState::OptimizerState(const Optimizer& optimizer, absl::Span<OwnedPiece> owned, DeviceKind device)
    : kind_(optimizer.groups().traits.name),
      scalar_names_(optimizer.scalar_names()),
      scalars_(scalar_names_.size()),
      second_pass_bytes_(optimizer.second_pass_bytes()) {
  // The n-th moments of all pieces lie one after another in one tensor: large enough for huge pages.
  std::vector<int64_t> sizes;
  for (const OwnedPiece& piece : owned) {
    pieces_.push_back({piece.param, piece.begin, piece.end, piece.master, piece.grad, {}});
    grads_.push_back(piece.grad);
    state_names_.push_back(optimizer.state_names(*piece.param));
    sizes.resize(std::max(sizes.size(), state_names_.back().size()));
    for (size_t i = 0; i < state_names_.back().size(); ++i) sizes[i] += piece.end - piece.begin;
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Tensor all = Tensor::Zeros({sizes[i]}, optimizer.moment_type(), device);
    int64_t at = 0;
    for (size_t p = 0; p < pieces_.size(); ++p) {
      if (i >= state_names_[p].size()) continue;
      const int64_t n = pieces_[p].end - pieces_[p].begin;
      pieces_[p].state.push_back(all.Rows(at, at + n));
      at += n;
    }
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

absl::Status OptimizerState::CheckKind(absl::string_view saved) const {
  if (saved == kind_) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the checkpoint has the optimizer state of ", saved,
                                                 " and this job trains with ", kind_,
                                                 "; go on with --reset_optimizer to start the moments anew"));
}

void OptimizerState::VisitState(StateVisitor& visitor) {
  std::string kind = kind_;
  visitor.Blob("optimizer.kind", kind);
  loaded_ = CheckKind(kind);
  if (!loaded_.ok()) return;  // nothing of another optimizer's is looked for
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
