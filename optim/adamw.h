// AdamW (Loshchilov & Hutter, arXiv 1711.05101), decay decoupled: W *= 1 - eta_t * weight_decay. Vectors (norms,
// biases) are not decayed.
#pragma once

#include "optim/optimizer.h"

namespace shoal {

class AdamW : public Optimizer {
 public:
  explicit AdamW(const config::AdamWConfig& config) : config_(config) {}
  ShardGranularity granularity() const override { return ShardGranularity::kElement; }
  std::vector<std::string> state_names() const override { return {"exp_avg", "exp_avg_sq"}; }
  void Step(ThreadPool& pool, const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) override;

 private:
  config::AdamWConfig config_;
};

}  // namespace shoal
