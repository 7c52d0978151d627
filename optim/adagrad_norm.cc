#include "optim/adagrad_norm.h"

#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

absl::Status AdaGradNorm::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  double& sum = shard.scalars[0];
  const double norm = step.grad_norm * step.grad_scale;
  sum += norm * norm;
  const double below = std::sqrt(config_.initial_accumulator() + sum) + config_.epsilon();
  if (below == 0) return absl::OkStatus();  // no gradient yet, and nothing to divide by
  ForPieceRuns(env.pool, shard.pieces, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    const double rate = step.learning_rate * OptionsOf(piece).learning_rate_factor / below;
    optim::CombineRun(static_cast<float>(-rate * step.grad_scale), piece.grad.data<float>() + begin, 1, n,
                      piece.master.data<float>() + begin);
  });
  return absl::OkStatus();
}

}  // namespace shoal
