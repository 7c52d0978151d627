// AdaGrad-Norm (Ward et al., arXiv 1806.01811): one accumulator for all parameters, which is not per element.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class AdaGradNorm : public Optimizer {
 public:
  AdaGradNorm(const config::AdaGradNormConfig& config, GroupTable groups)
      : Optimizer(std::move(groups), DType::kF32), config_(config) {}
  std::vector<std::string> state_names(const Param& /*param*/) const override { return {}; }
  std::vector<std::string> scalar_names() const override { return {"optimizer.sum_of_squares"}; }
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  config::AdaGradNormConfig config_;
};

}  // namespace shoal
