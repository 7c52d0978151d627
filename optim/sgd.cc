#include "optim/sgd.h"

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

UpdateTraits Sgd::Traits(const config::SgdConfig& config) { return {.weight_decay = config.weight_decay()}; }

absl::Status Sgd::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  ForPieceRuns(env.pool, shard.pieces, [&](OptimizerPiece& piece, int64_t first, int64_t count) {
    const ParamOptions& options = OptionsOf(piece);
    const optim::SgdScalars s{.grad_scale = static_cast<float>(step.grad_scale),
                              .momentum = static_cast<float>(config_.momentum()),
                              .weight_decay = static_cast<float>(options.weight_decay),
                              .learning_rate = static_cast<float>(step.learning_rate * options.learning_rate_factor),
                              .nesterov = config_.nesterov()};
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      MomentRun buffer(piece, 0, begin, n);
      optim::SgdRun(s, piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, buffer.values());
      buffer.Store(step);
    });
  });
  return absl::OkStatus();
}

}  // namespace shoal
