// OptimizerState: the moments of this rank's pieces, what an optimizer keeps besides, and how far it is.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "optim/optimizer.h"
#include "parallel/data_parallel.h"
#include "parallel/state.h"

namespace shoal {

class OptimizerState : public Stateful {
 public:
  // Zeroed moments for every piece of `owned` (views; DataParallel outlives it).
  OptimizerState(const Optimizer& optimizer, absl::Span<OwnedPiece> owned, DeviceKind device);
  absl::Span<OptimizerPiece> pieces() { return absl::MakeSpan(pieces_); }
  absl::Span<const Tensor> grads() const { return grads_; }  // of the pieces, for norms
  OptimizerShard shard() { return {absl::MakeSpan(pieces_), absl::MakeSpan(scalars_)}; }

  // Before each Optimizer::Step: counts the update, and fills in its step, time and batch_ratio.
  void BeginUpdate(double batch_ratio, OptimizerStep& step);
  int64_t updates() const { return updates_; }  // steps that changed the weights

  int64_t bytes() const;
  int64_t update_bytes() const;  // that one update reads and writes: moments, masters, gradients
  // Whether state that an optimizer of this name saved ("optimizer.kind" in a checkpoint's manifest) may be loaded
  // here: InvalidArgument names both.
  absl::Status CheckKind(absl::string_view saved) const;
  // Of what VisitState last loaded: CheckKind. Where that is an error nothing was loaded.
  const absl::Status& loaded() const { return loaded_; }
  // Moments as "<parameter>/<state name>", by box of the flattened tensor; scalars by their names; "optimizer.kind",
  // "optimizer.updates", "optimizer.time".
  void VisitState(StateVisitor& visitor) override;

 private:
  std::string kind_;
  absl::Status loaded_;
  std::vector<OptimizerPiece> pieces_;
  std::vector<Tensor> grads_;
  std::vector<std::vector<std::string>> state_names_;  // by piece
  std::vector<std::string> scalar_names_;
  std::vector<double> scalars_;
  int64_t second_pass_bytes_;  // of an element
  int64_t updates_ = 0;
  double time_ = 0;
};

}  // namespace shoal
