// AdamW (Loshchilov & Hutter, arXiv 1711.05101), decay decoupled.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class AdamW : public Optimizer {
 public:
  AdamW(const config::AdamWConfig& config, GroupTable groups, DType moment_type)
      : Optimizer(std::move(groups), moment_type), config_(config) {}
  static UpdateTraits Traits(const config::AdamWConfig& config);
  std::vector<std::string> state_names(const Param& param) const override;
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

  // The update of `pieces` of any optimizer that has these moments for them: Muon leaves some tensors to it.
  static void Update(const config::AdamWConfig& config, const Optimizer& optimizer, ThreadPool& pool,
                     const OptimizerStep& step, absl::Span<OptimizerPiece> pieces);

 private:
  config::AdamWConfig config_;
};

// The share of a weight that decoupled decay leaves in this step; see config::Decay and OptimConfig.reference_batch.
double KeptShare(const OptimizerStep& step, const ParamOptions& options, config::Decay decay);

}  // namespace shoal
