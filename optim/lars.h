// LARS (You et al., arXiv 1708.03888) in its two published forms (config::LarsConfig).
//
// Two passes (TwoPasses): the norms of weights and gradients; then momentum and weights. 28 bytes a parameter in all.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class Lars : public Optimizer {
 public:
  Lars(const config::LarsConfig& config, GroupTable groups, DType moment_type)
      : Optimizer(std::move(groups), moment_type), config_(config) {}
  static UpdateTraits Traits(const config::LarsConfig& config);
  std::vector<std::string> state_names(const Param& /*param*/) const override { return {"momentum"}; }
  int64_t second_pass_bytes() const override { return 8; }
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  // The factor on a tensor's rate, from its norms: of its weights, and of what the form divides by.
  double LocalRate(const ParamOptions& options, double weight_norm, double grad_norm) const;
  config::LarsConfig config_;
};

}  // namespace shoal
