#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

double KeptShare(const OptimizerStep& step, const ParamOptions& options, config::Decay decay) {
  const double rate = decay == config::INDEPENDENT ? step.schedule : step.learning_rate * options.learning_rate_factor;
  const double kept = 1 - rate * options.weight_decay;
  return step.batch_ratio == 1 ? kept : std::pow(std::max(kept, 0.0), step.batch_ratio);
}

UpdateTraits AdamW::Traits(const config::AdamWConfig& config) {
  return {.weight_decay = config.weight_decay(),
          .epsilon = config.epsilon(),
          .decay = config.decay(),
          .width = UpdateTraits::Width::kScaled};
}

std::vector<std::string> AdamW::state_names(const Param& /*param*/) const { return {"exp_avg", "exp_avg_sq"}; }

absl::Status AdamW::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  Update(config_, *this, env.pool, step, shard.pieces);
  return absl::OkStatus();
}

void AdamW::Update(const config::AdamWConfig& config, const Optimizer& optimizer, ThreadPool& pool,
                   const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) {
  const double beta1 = config.beta1(), beta2 = std::pow(config.beta2(), step.batch_ratio);
  const double bias1 = 1 - std::pow(beta1, static_cast<double>(step.step));
  const double bias2 = 1 - std::pow(config.beta2(), step.time);
  const auto scalars = [&](const ParamOptions& options) {
    return optim::AdamWScalars{
        .grad_scale = static_cast<float>(step.grad_scale),
        .beta1 = static_cast<float>(beta1),
        .fresh1 = static_cast<float>(1 - beta1),
        .beta2 = static_cast<float>(beta2),
        .fresh2 = static_cast<float>(1 - beta2),
        .keep = static_cast<float>(KeptShare(step, options, config.decay())),
        .step_size = static_cast<float>(step.learning_rate * options.learning_rate_factor / bias1),
        .inverse_bias2 = static_cast<float>(1 / bias2),
        .epsilon = static_cast<float>(options.epsilon)};
  };
  ForPieceRuns(pool, pieces, [&](OptimizerPiece& piece, int64_t first, int64_t count) {
    const optim::AdamWScalars s = scalars(optimizer.groups().rows[piece.param->id]);
    ForBlocks(optimizer.moment_type(), first, count, [&](int64_t begin, int64_t n) {
      MomentRun m(piece, 0, begin, n), v(piece, 1, begin, n);
      optim::AdamWRun(s, piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, m.values(),
                      v.values());
      m.Store(step);
      v.Store(step);
    });
  });
}

}  // namespace shoal
