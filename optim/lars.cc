#include "optim/lars.h"

#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

UpdateTraits Lars::Traits(const config::LarsConfig& config) {
  return {.weight_decay = config.weight_decay(), .epsilon = config.epsilon(), .adapts = Adapts::kAllButVectors};
}

double Lars::LocalRate(const ParamOptions& options, double weight_norm, double grad_norm) const {
  if (options.adapt == ParamOptions::Adapt::kNo || weight_norm == 0 || grad_norm == 0) return 1;
  double below = grad_norm + options.epsilon;
  if (config_.form() == config::LarsConfig::ORIGINAL) below += options.weight_decay * weight_norm;
  return config_.trust_coefficient() * weight_norm / below;
}

absl::Status Lars::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  const auto scalars = [&](const ParamOptions& options, double local) {
    return optim::LarsScalars{.grad_scale = static_cast<float>(step.grad_scale),
                              .momentum = static_cast<float>(config_.momentum()),
                              .weight_decay = static_cast<float>(options.weight_decay),
                              .rate = static_cast<float>(step.learning_rate * options.learning_rate_factor * local),
                              .nesterov = config_.nesterov()};
  };
  const auto norms = [&](OptimizerPiece& piece, int64_t begin, int64_t n, double* squares) {
    if (OptionsOf(piece).adapt == ParamOptions::Adapt::kNo) return;
    optim::LarsScalars s = scalars(OptionsOf(piece), 1);
    if (config_.form() == config::LarsConfig::ORIGINAL) s.weight_decay = 0;  // the norm is the gradient's alone
    optim::LarsNormsRun(s, piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, squares);
  };
  const auto apply = [&](OptimizerPiece& piece, int64_t first, int64_t count, const double* squares) {
    const ParamOptions& options = OptionsOf(piece);
    const optim::LarsScalars s = scalars(options, LocalRate(options, std::sqrt(squares[0]), std::sqrt(squares[1])));
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      MomentRun velocity(piece, 0, begin, n);
      optim::LarsRun(s, piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, velocity.values());
      velocity.Store(step);
    });
  };
  return TwoPasses(env, shard.pieces, groups().rows.size(), norms, apply);
}

}  // namespace shoal
