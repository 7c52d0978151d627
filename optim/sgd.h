// SGD with momentum, the form of PyTorch: the decay is part of the gradient, and the buffer is not damped.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class Sgd : public Optimizer {
 public:
  Sgd(const config::SgdConfig& config, GroupTable groups, DType moment_type)
      : Optimizer(std::move(groups), moment_type), config_(config) {}
  static UpdateTraits Traits(const config::SgdConfig& config);
  std::vector<std::string> state_names(const Param& /*param*/) const override { return {"momentum"}; }
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  config::SgdConfig config_;
};

}  // namespace shoal
