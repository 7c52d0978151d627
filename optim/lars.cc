#include "optim/lars.h"

#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"
#include "runtime/base/status.h"
#include "runtime/ops/cpu/row_kernels.h"

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
  const auto grad_scale = static_cast<float>(step.grad_scale);
  std::vector<double> sums =
      SumByParam(env.pool, shard.pieces, groups().rows.size(), 2,
                 [&](OptimizerPiece& piece, int64_t begin, int64_t n, double* squares) {
                   const ParamOptions& options = OptionsOf(piece);
                   if (options.adapt == ParamOptions::Adapt::kNo) return;
                   const float* weight = piece.master.data<float>() + begin;
                   float direction[kRunElements];
                   optim::ScaleRun(grad_scale, piece.grad.data<float>() + begin, n, direction);
                   if (config_.form() == config::LarsConfig::OPTAX)
                     optim::CombineRun(static_cast<float>(options.weight_decay), weight, 1, n, direction);
                   squares[0] += cpu::SumOfSquaresRow(weight, n);
                   squares[1] += cpu::SumOfSquaresRow(direction, n);
                 });
  SHOAL_RETURN_IF_ERROR(env.owners.Sum(absl::MakeSpan(sums)));
  ForPieceRuns(env.pool, shard.pieces, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    const ParamOptions& options = OptionsOf(piece);
    const auto id = static_cast<size_t>(piece.param->id);
    const double local = LocalRate(options, std::sqrt(sums[2 * id]), std::sqrt(sums[2 * id + 1]));
    MomentRun velocity(piece, 0, begin, n);
    optim::LarsRun({.grad_scale = grad_scale,
                    .momentum = static_cast<float>(config_.momentum()),
                    .weight_decay = static_cast<float>(options.weight_decay),
                    .rate = static_cast<float>(step.learning_rate * options.learning_rate_factor * local),
                    .nesterov = config_.nesterov()},
                   piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin, velocity.values());
    velocity.Store(step);
  });
  return absl::OkStatus();
}

}  // namespace shoal
