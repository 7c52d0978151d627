#include "optim/width_rule.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using config::WidthRule;

struct Exponents {
  double learning_rate, weight_decay, epsilon;
};

Exponents PresetOf(WidthRule::Preset preset, ParamClass param_class) {
  if (preset == WidthRule::NONE) return {0, 0, 0};
  if (param_class != ParamClass::kMatrix) return {0, 0, -1};
  return {-1, preset == WidthRule::ROBUST_DECAY ? 0.5 : 1.0, -1};
}

const WidthRule::Exponents& GivenFor(const WidthRule& rule, ParamClass param_class) {
  switch (param_class) {
    case ParamClass::kMatrix:
      return rule.matrix();
    case ParamClass::kEmbedding:
      return rule.embedding();
    case ParamClass::kReadout:
      return rule.readout();
    case ParamClass::kVector:
      break;
  }
  return rule.vector();
}

// Whether the rule changes anything with the width.
bool Scales(const WidthRule& rule) {
  return rule.preset() != WidthRule::NONE || rule.has_matrix() || rule.has_embedding() || rule.has_readout() ||
         rule.has_vector() || rule.has_readout_multiplier_exponent() || rule.base_fan_in_size() > 0;
}

double DepthRatio(const WidthRule& rule, int64_t depth) {
  if (rule.preset() != WidthRule::COMPLETE_P) return 1;
  return static_cast<double>(depth) / static_cast<double>(rule.base_depth());
}

}  // namespace

int64_t FanIn(const Shape& shape) {
  if (shape.size() < 2) return 1;
  return NumElements(absl::MakeSpan(shape).subspan(1));
}

absl::Status CheckWidthRule(const WidthRule& rule) {
  std::vector<std::string> wrong;
  if (Scales(rule) && !rule.has_base_width()) {
    wrong.push_back(
        "optim.width_rule has no base_width, the width at which rate and decay were tuned; write width_rule { "
        "base_width: 256 }");
  } else if (rule.has_base_width() && rule.base_width() < 1) {
    wrong.push_back(absl::StrCat("optim.width_rule.base_width is ", rule.base_width(), "; it must be above 0"));
  }
  const bool by_depth = rule.preset() == WidthRule::COMPLETE_P;
  if (by_depth && rule.base_depth() < 1)
    wrong.push_back(
        "optim.width_rule has no base_depth, the layers at which they were tuned, which COMPLETE_P needs; write "
        "base_depth: 4");
  if (!by_depth && (rule.has_base_depth() || rule.has_depth_alpha()))
    wrong.push_back("optim.width_rule.base_depth and depth_alpha are for preset COMPLETE_P");
  if (rule.has_base_head_size() && rule.base_head_size() < 1)
    wrong.push_back(absl::StrCat("optim.width_rule.base_head_size is ", rule.base_head_size(), "; it must be above 0"));
  for (const auto& base : rule.base_fan_in()) {
    if (base.fan_in() < 1)
      wrong.push_back(absl::StrCat("optim.width_rule.base_fan_in of '", base.match(), "' has no fan_in above 0"));
    if (auto regex = Regex::Compile(base.match()); !regex.ok())
      wrong.push_back(absl::StrCat("optim.width_rule.base_fan_in.match: ", regex.status().message()));
  }
  return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
}

absl::StatusOr<std::vector<double>> WidthRatios(const WidthRule& rule, const ModelScale& scale,
                                                absl::Span<const Param* const> params) {
  if (!Scales(rule)) return std::vector<double>(params.size(), 1.0);
  if (scale.width < 1)
    return absl::InvalidArgumentError("optim.width_rule is for models that have a width; this one names none");
  std::vector<double> ratios(params.size(), static_cast<double>(scale.width) / static_cast<double>(rule.base_width()));
  std::vector<int> base_of(params.size(), -1);
  for (int b = 0; b < rule.base_fan_in_size(); ++b) {
    const auto& base = rule.base_fan_in(b);
    SHOAL_ASSIGN_OR_RETURN(const Regex regex, Regex::Compile(base.match()));
    int matched = 0;
    for (size_t i = 0; i < params.size(); ++i) {
      if (params[i]->param_class != ParamClass::kMatrix || base_of[i] >= 0 || !regex.Matches(params[i]->name)) continue;
      base_of[i] = b;
      ratios[i] = static_cast<double>(FanIn(params[i]->shape)) / static_cast<double>(base.fan_in());
      ++matched;
    }
    if (matched == 0) {
      return absl::InvalidArgumentError(absl::StrCat("optim.width_rule.base_fan_in.match '", base.match(),
                                                     "' matches no matrix that an earlier one leaves"));
    }
  }
  return ratios;
}

WidthFactors FactorsOf(const WidthRule& rule, const ModelScale& scale, ParamClass param_class, double m,
                       config::Decay decay) {
  Exponents e = PresetOf(rule.preset(), param_class);
  const WidthRule::Exponents& given = GivenFor(rule, param_class);
  if (given.has_learning_rate()) e.learning_rate = given.learning_rate();
  if (given.has_weight_decay()) e.weight_decay = given.weight_decay();
  if (given.has_epsilon()) e.epsilon = given.epsilon();
  if (decay == config::INDEPENDENT) e.weight_decay += e.learning_rate;
  WidthFactors factors{std::pow(m, e.learning_rate), std::pow(m, e.weight_decay), std::pow(m, e.epsilon)};
  if (rule.preset() == WidthRule::COMPLETE_P && param_class == ParamClass::kMatrix) {
    const double l = DepthRatio(rule, scale.depth);
    factors.learning_rate *= std::pow(l, rule.depth_alpha() - 1);
    factors.epsilon *= std::pow(l, -rule.depth_alpha());
  }
  return factors;
}

Decayed DecayedByDefault(const WidthRule& rule, ParamClass param_class) {
  if (param_class == ParamClass::kMatrix) return Decayed::kYes;
  if (param_class == ParamClass::kVector || rule.preset() == WidthRule::ROBUST_DECAY) return Decayed::kNo;
  return Decayed::kYes;
}

double ReadoutMultiplier(const WidthRule& rule, int64_t width) {
  const double exponent = rule.has_readout_multiplier_exponent() ? rule.readout_multiplier_exponent()
                          : rule.preset() == WidthRule::NONE     ? 0
                                                                 : -1;
  if (exponent == 0) return 1;
  return std::pow(static_cast<double>(width) / static_cast<double>(rule.base_width()), exponent);
}

double AttentionScale(const WidthRule& rule, int64_t head_size) {
  const double head = static_cast<double>(head_size);
  if (rule.has_base_head_size()) return std::sqrt(static_cast<double>(rule.base_head_size())) / head;
  return rule.preset() == WidthRule::NONE ? 1 / std::sqrt(head) : 1 / head;
}

double ResidualMultiplier(const WidthRule& rule, int64_t depth) {
  return std::pow(DepthRatio(rule, depth), -rule.depth_alpha());
}

double InitialFactor(const WidthRule& rule, ParamClass param_class, double m) {
  return rule.preset() == WidthRule::NONE || param_class != ParamClass::kMatrix ? 1 : 1 / std::sqrt(m);
}

}  // namespace shoal
