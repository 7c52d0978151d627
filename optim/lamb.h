// LAMB (You et al., arXiv 1904.00962), layerwise adaptive Adam for large batches, as its published programs differ
// (config::LambConfig): tfa, apex, nvlamb, optax, lambc.
//
// Two passes (TwoPasses): moments, directions and norms; then weights. The direction takes the gradient's place between
// them, so that the second pass reads it and the weights alone: 40 bytes a parameter in all.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class Lamb : public Optimizer {
 public:
  Lamb(const config::LambConfig& config, GroupTable groups, DType moment_type);
  static UpdateTraits Traits(const config::LambConfig& config);
  std::vector<std::string> state_names(const Param& /*param*/) const override { return {"exp_avg", "exp_avg_sq"}; }
  int64_t second_pass_bytes() const override { return 12; }
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  double TrustRatio(const ParamOptions& options, double weight_norm, double direction_norm) const;
  config::LambConfig config_;  // the preset filled in
};

}  // namespace shoal
