#include "optim/adagrad.h"

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

UpdateTraits AdaGrad::Traits(const config::AdaGradConfig& config) {
  return {.weight_decay = config.weight_decay(), .epsilon = config.epsilon()};
}

absl::Status AdaGrad::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  ForPieceRuns(env.pool, shard.pieces, [&](OptimizerPiece& piece, int64_t first, int64_t count) {
    const ParamOptions& options = OptionsOf(piece);
    const optim::AdaGradScalars s{.grad_scale = static_cast<float>(step.grad_scale),
                                  .weight_decay = static_cast<float>(options.weight_decay),
                                  .rate = static_cast<float>(step.learning_rate * options.learning_rate_factor),
                                  .initial = static_cast<float>(config_.initial_accumulator()),
                                  .epsilon = static_cast<float>(options.epsilon)};
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      MomentRun sum(piece, 0, begin, n);
      optim::AdaGradRun(s, piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, sum.values());
      sum.Store(step);
    });
  });
  return absl::OkStatus();
}

}  // namespace shoal
