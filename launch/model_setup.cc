#include "launch/model_setup.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "models/transformer_spec.h"
#include "runtime/base/status.h"

namespace shoal {

WidthMultipliers MultipliersOf(const config::Job& job) {
  if (!job.optim().has_width_rule()) return {};
  const auto& rule = job.optim().width_rule();
  const int64_t head = HeadSize(job.model().transformer());
  const ModelScale scale = ScaleOf(job);
  return {.attention = AttentionScale(rule, head) * std::sqrt(static_cast<double>(head)),
          .readout = ReadoutMultiplier(rule, scale.width),
          .residual = ResidualMultiplier(rule, scale.depth)};
}

ModelScale ScaleOf(const config::Job& job) {
  return {.width = job.model().transformer().width(), .depth = job.model().transformer().layers()};
}

DType ComputeType(const config::Job& job) {
  return job.runtime().compute() == config::RuntimeConfig::BF16 ? DType::kBF16 : DType::kF32;
}

absl::StatusOr<std::unique_ptr<Model>> ModelFor(const config::Job& job, Recomputation recomputed) {
  if (!job.optim().has_width_rule()) return MakeModel(job.model(), recomputed);
  auto model = MakeModel(job.model(), recomputed, MultipliersOf(job));
  const auto& rule = job.optim().width_rule();
  SHOAL_ASSIGN_OR_RETURN(std::vector<double> factors, WidthRatios(rule, ScaleOf(job), model->params()));
  for (size_t i = 0; i < factors.size(); ++i)
    factors[i] = InitialFactor(rule, model->params()[i]->param_class, factors[i]);
  model->ScaleInitialValues(factors);
  return model;
}

std::string WidthRuleText(const config::Job& job) {
  if (!job.optim().has_width_rule()) return "";
  const WidthMultipliers multipliers = MultipliersOf(job);
  return absl::StrFormat(
      "width rule: logits times %.4g, attention scores times %.4g, residual branches times %.4g", multipliers.readout,
      AttentionScale(job.optim().width_rule(), HeadSize(job.model().transformer())), multipliers.residual);
}

}  // namespace shoal
