// AdaGrad (Duchi et al., 2011), the form of PyTorch.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class AdaGrad : public Optimizer {
 public:
  AdaGrad(const config::AdaGradConfig& config, GroupTable groups, DType moment_type)
      : Optimizer(std::move(groups), moment_type), config_(config) {}
  static UpdateTraits Traits(const config::AdaGradConfig& config);
  std::vector<std::string> state_names(const Param& /*param*/) const override { return {"sum"}; }
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  config::AdaGradConfig config_;
};

}  // namespace shoal
