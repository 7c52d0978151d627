// The table of optimizers: a new one is a file of its own, a message in optim.proto and a case in each switch here.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "optim/adagrad.h"
#include "optim/adagrad_norm.h"
#include "optim/adamw.h"
#include "optim/batch_size.h"
#include "optim/lamb.h"
#include "optim/lars.h"
#include "optim/muon.h"
#include "optim/optimizer.h"
#include "optim/sgd.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using config::OptimConfig;
using Offer = OptimizerTraits::Offer;

OptimizerTraits TraitsOf(const OptimConfig& config) {
  switch (config.kind_case()) {
    case OptimConfig::kSgd:
      return {"SGD", Sgd::Traits(config.sgd()), std::nullopt, Offer::kYes, Offer::kNo};
    case OptimConfig::kLamb:
      return {"LAMB", Lamb::Traits(config.lamb()), std::nullopt, Offer::kYes, Offer::kYes};
    case OptimConfig::kLars:
      return {"LARS", Lars::Traits(config.lars()), std::nullopt, Offer::kYes, Offer::kNo};
    case OptimConfig::kMuon:
      return {"Muon", Muon::Traits(config.muon()), Muon::AdamWTraits(config.muon(), config.learning_rate()),
              Offer::kYes, Offer::kYes};
    case OptimConfig::kAdagrad:
      return {"AdaGrad", AdaGrad::Traits(config.adagrad()), std::nullopt, Offer::kYes, Offer::kNo};
    case OptimConfig::kAdagradNorm:
      return {"AdaGrad-Norm", {}, std::nullopt, Offer::kNo, Offer::kNo};
    case OptimConfig::kAdamw:
    case OptimConfig::KIND_NOT_SET:
      break;
  }
  return {"AdamW", AdamW::Traits(config.adamw()), std::nullopt, Offer::kYes, Offer::kYes};
}

absl::StatusOr<std::unique_ptr<Optimizer>> Make(const OptimConfig& config, GroupTable groups) {
  const DType moments = config.moments() == config::BF16 ? DType::kBF16 : DType::kF32;
  switch (config.kind_case()) {
    case OptimConfig::kSgd:
      return std::make_unique<Sgd>(config.sgd(), std::move(groups), moments);
    case OptimConfig::kLamb:
      return std::make_unique<Lamb>(config.lamb(), std::move(groups), moments);
    case OptimConfig::kLars:
      return std::make_unique<Lars>(config.lars(), std::move(groups), moments);
    case OptimConfig::kMuon:
      return Muon::Create(config.muon(), std::move(groups), moments);
    case OptimConfig::kAdagrad:
      return std::make_unique<AdaGrad>(config.adagrad(), std::move(groups), moments);
    case OptimConfig::kAdagradNorm:
      return std::make_unique<AdaGradNorm>(config.adagrad_norm(), std::move(groups));
    case OptimConfig::kAdamw:
    case OptimConfig::KIND_NOT_SET:
      break;
  }
  return std::make_unique<AdamW>(config.adamw(), std::move(groups), moments);
}

// Collects what lies outside its range.
class Ranges {
 public:
  // `value` must lie in [low, high).
  void In(const std::string& field, double value, double low, double high) {
    if (value >= low && value < high) return;
    wrong_.push_back(absl::StrCat(field, " is ", value, "; it lies in [", low, ", ", high, ")"));
  }
  void Decay(const std::string& of, double value) { In(of + ".weight_decay", value, 0, 1e6); }
  void Share(const std::string& field, double value) { In(field, value, 0, 1); }
  void Add(const absl::Status& status) {
    if (!status.ok()) wrong_.emplace_back(status.message());
  }
  absl::Status Result() const {
    return wrong_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong_, "\n"));
  }

 private:
  std::vector<std::string> wrong_;
};

constexpr double kHuge = 1e30;

void CheckAdamW(Ranges& ranges, const std::string& field, const config::AdamWConfig& config) {
  ranges.Share(field + ".beta1", config.beta1());
  ranges.Share(field + ".beta2", config.beta2());
  ranges.In(field + ".epsilon", config.epsilon(), 0, 1);
  ranges.Decay(field, config.weight_decay());
}

void CheckMuon(Ranges& ranges, const config::MuonConfig& config) {
  ranges.Share("optim.muon.momentum", config.momentum());
  ranges.Decay("optim.muon", config.weight_decay());
  ranges.In("optim.muon.adamw_learning_rate", config.adamw_learning_rate(), 0, 1e6);
  CheckAdamW(ranges, "optim.muon.adamw", config.adamw());
  const auto& noise = config.noise_adaptive();
  ranges.In("optim.muon.noise_adaptive.alpha", noise.alpha(), 0, kHuge);
  ranges.Share("optim.muon.noise_adaptive.beta2", noise.beta2());
  ranges.In("optim.muon.noise_adaptive.every_steps", noise.every_steps(), 1, kHuge);
}

void CheckKind(Ranges& ranges, const OptimConfig& config) {
  switch (config.kind_case()) {
    case OptimConfig::kSgd:
      ranges.Share("optim.sgd.momentum", config.sgd().momentum());
      return ranges.Decay("optim.sgd", config.sgd().weight_decay());
    case OptimConfig::kLamb:
      ranges.Share("optim.lamb.beta1", config.lamb().beta1());
      ranges.Share("optim.lamb.beta2", config.lamb().beta2());
      ranges.In("optim.lamb.epsilon", config.lamb().epsilon(), 0, 1);
      ranges.In("optim.lamb.max_grad_norm", config.lamb().max_grad_norm(), 0, kHuge);
      ranges.In("optim.lamb.max_trust_ratio", config.lamb().max_trust_ratio(), 0, kHuge);
      return ranges.Decay("optim.lamb", config.lamb().weight_decay());
    case OptimConfig::kLars:
      ranges.Share("optim.lars.momentum", config.lars().momentum());
      ranges.In("optim.lars.trust_coefficient", config.lars().trust_coefficient(), 0, kHuge);
      ranges.In("optim.lars.epsilon", config.lars().epsilon(), 0, kHuge);
      return ranges.Decay("optim.lars", config.lars().weight_decay());
    case OptimConfig::kMuon:
      return CheckMuon(ranges, config.muon());
    case OptimConfig::kAdagrad:
      ranges.In("optim.adagrad.epsilon", config.adagrad().epsilon(), 0, kHuge);
      ranges.In("optim.adagrad.initial_accumulator", config.adagrad().initial_accumulator(), 0, kHuge);
      return ranges.Decay("optim.adagrad", config.adagrad().weight_decay());
    case OptimConfig::kAdagradNorm:
      ranges.In("optim.adagrad_norm.epsilon", config.adagrad_norm().epsilon(), 0, kHuge);
      return ranges.In("optim.adagrad_norm.initial_accumulator", config.adagrad_norm().initial_accumulator(), 0, kHuge);
    case OptimConfig::kAdamw:
    case OptimConfig::KIND_NOT_SET:
      return CheckAdamW(ranges, "optim.adamw", config.adamw());
  }
}

void CheckShared(Ranges& ranges, const OptimConfig& config) {
  ranges.In("optim.learning_rate", config.learning_rate(), 0, 1e6);
  ranges.In("optim.clip_norm", config.clip_norm(), 0, kHuge);
  if (config.has_reference_batch())
    ranges.In("optim.reference_batch", static_cast<double>(Count(config.reference_batch())), 1, kHuge);
  if (config.ema().has_decay()) ranges.Share("optim.ema.decay", config.ema().decay());
  if (config.has_batch_growth()) {
    ranges.In("optim.batch_growth.eta", config.batch_growth().eta(), 1e-6, kHuge);
    ranges.In("optim.batch_growth.test_every", config.batch_growth().test_every(), 1, kHuge);
    ranges.Share("optim.batch_growth.smoothing", config.batch_growth().smoothing());
  }
}

}  // namespace

absl::Status CheckOptimizer(const OptimConfig& config) {
  Ranges ranges;
  CheckShared(ranges, config);
  CheckKind(ranges, config);
  ranges.Add(CheckGroups(config, TraitsOf(config)));
  return ranges.Result();
}

absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const OptimConfig& config,
                                                         absl::Span<const Param* const> params,
                                                         const ModelScale& scale) {
  SHOAL_RETURN_IF_ERROR(CheckOptimizer(config));
  SHOAL_ASSIGN_OR_RETURN(GroupTable groups, ResolveGroups(params, config, TraitsOf(config), scale));
  return Make(config, std::move(groups));
}

std::string OptimizerName(const OptimConfig& config) { return TraitsOf(config).name; }

double BatchRatio(const OptimConfig& config, int64_t samples, int64_t tokens) {
  if (!config.has_reference_batch()) return 1;
  const config::Size& reference = config.reference_batch();
  return static_cast<double>(reference.has_tokens() ? tokens : samples) / static_cast<double>(Count(reference));
}

}  // namespace shoal
