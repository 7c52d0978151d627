#include "optim/lamb.h"

#include <algorithm>
#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {
namespace {

struct Preset {
  double max_grad_norm, weight_decay;
  Adapts adapts;
  double max_trust_ratio;
};

Preset PresetOf(config::LambConfig::Preset preset) {
  switch (preset) {
    case config::LambConfig::TFA:
      return {0, 0, Adapts::kAllButVectors, 0};
    case config::LambConfig::APEX:
      return {1, 0.01, Adapts::kDecayed, 0};
    case config::LambConfig::NVLAMB:
      return {1, 0.01, Adapts::kAll, 0};
    case config::LambConfig::OPTAX:
      return {0, 0, Adapts::kAll, 0};
    case config::LambConfig::LAMBC:
      break;
  }
  return {1, 0.01, Adapts::kDecayed, 1};
}

config::LambConfig Filled(config::LambConfig config) {
  const Preset preset = PresetOf(config.preset());
  if (!config.has_max_grad_norm()) config.set_max_grad_norm(preset.max_grad_norm);
  if (!config.has_weight_decay()) config.set_weight_decay(preset.weight_decay);
  if (!config.has_max_trust_ratio()) config.set_max_trust_ratio(preset.max_trust_ratio);
  return config;
}

}  // namespace

Lamb::Lamb(const config::LambConfig& config, GroupTable groups, DType moment_type)
    : Optimizer(std::move(groups), moment_type), config_(Filled(config)) {}

UpdateTraits Lamb::Traits(const config::LambConfig& config) {
  return {.weight_decay = Filled(config).weight_decay(),
          .epsilon = config.epsilon(),
          .adapts = PresetOf(config.preset()).adapts};
}

absl::Status Lamb::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  const double beta1 = config_.beta1(), beta2 = std::pow(config_.beta2(), step.batch_ratio);
  double bias1 = 1, bias2 = 1, grad_scale = step.grad_scale;
  if (config_.bias_correction()) {
    bias1 = 1 - std::pow(beta1, static_cast<double>(step.step));
    bias2 = 1 - std::pow(config_.beta2(), step.time);
  }
  if (config_.max_grad_norm() > 0)
    grad_scale /= std::max(1.0, step.grad_norm * step.grad_scale / config_.max_grad_norm());
  const auto scalars = [&](const OptimizerPiece& piece) {
    const ParamOptions& options = OptionsOf(piece);
    return optim::LambScalars{.grad_scale = static_cast<float>(grad_scale),
                              .beta1 = static_cast<float>(beta1),
                              .fresh1 = static_cast<float>(1 - beta1),
                              .beta2 = static_cast<float>(beta2),
                              .fresh2 = static_cast<float>(1 - beta2),
                              .inverse_bias1 = static_cast<float>(1 / bias1),
                              .inverse_bias2 = static_cast<float>(1 / bias2),
                              .epsilon = static_cast<float>(options.epsilon),
                              .weight_decay = static_cast<float>(options.weight_decay)};
  };

  // Moments, the norms of weight and direction, and the direction itself, which takes the place of the gradient.
  const auto norms = [&](OptimizerPiece& piece, int64_t first, int64_t count, double* squares) {
    const optim::LambScalars s = scalars(piece);
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      const float* weight = piece.master.data<float>() + begin;
      float* grad = piece.grad.data<float>() + begin;
      MomentRun m(piece, 0, begin, n), v(piece, 1, begin, n);
      if (moment_type() == DType::kF32) {
        optim::LambMomentsRun(s, n, weight, m.values(), v.values(), grad, squares);
        return;
      }
      // The direction is that of the moments as they are stored.
      optim::MomentsRun(s, grad, n, m.values(), v.values());
      m.Store(step);
      v.Store(step);
      optim::LambDirectionRun(s, n, weight, m.values(), v.values(), grad, squares);
    });
  };
  const auto apply = [&](OptimizerPiece& piece, int64_t begin, int64_t n, const double* squares) {
    const double ratio = TrustRatio(OptionsOf(piece), std::sqrt(squares[0]), std::sqrt(squares[1]));
    const auto rate = static_cast<float>(step.learning_rate * OptionsOf(piece).learning_rate_factor * ratio);
    optim::CombineRun(-rate, piece.grad.data<float>() + begin, 1, n, piece.master.data<float>() + begin);
  };
  return TwoPasses(env, shard.pieces, groups().rows.size(), norms, apply);
}

double Lamb::TrustRatio(const ParamOptions& options, double weight_norm, double direction_norm) const {
  if (options.adapt == ParamOptions::Adapt::kNo || weight_norm == 0 || direction_norm == 0) return 1;
  const double free = weight_norm / direction_norm;
  return config_.max_trust_ratio() > 0 ? std::min(free, config_.max_trust_ratio()) : free;
}

}  // namespace shoal
