// SGD with momentum, the form of PyTorch: the decay is part of the gradient, and the buffer is not damped.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class Sgd : public Optimizer {
 public:
  explicit Sgd(const config::SgdConfig& config) : config_(config) {}
  ShardGranularity granularity() const override { return ShardGranularity::kElement; }
  std::vector<std::string> state_names() const override { return {"momentum"}; }
  void Step(ThreadPool& pool, const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) override;

 private:
  config::SgdConfig config_;
};

}  // namespace shoal
