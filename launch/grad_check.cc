#include "launch/grad_check.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/model_setup.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"
#include "runtime/module/local_params.h"
#include "runtime/module/step_context.h"

namespace shoal {
namespace {

// The first rows: at most `most` tokens of the first sequence, or a few images.
Batch FirstRows(const Batch& batch) {
  constexpr int32_t kTokens = 64, kImages = 3;
  const bool text = batch.x.rank() == 1;
  const auto n = static_cast<int32_t>(text ? std::min(kTokens, batch.layout->cu_seqlens[1])
                                           : std::min<int64_t>(kImages, batch.x.dim(0)));
  auto layout = std::make_shared<SeqLayout>();
  if (text) {
    layout->cu_seqlens = {0, n};
    layout->positions = batch.layout->positions.Rows(0, n);
  }
  layout->labels = batch.layout->labels.Rows(0, n);
  layout->token_counters = batch.layout->token_counters.Rows(0, n);
  layout->max_len = n;
  return {batch.x.Rows(0, n), std::move(layout)};
}

}  // namespace

absl::StatusOr<std::string> CheckGradients(const config::Job& job, const std::string& pattern, const Batch& batch,
                                           DataParallel& dp, ThreadPool& pool) {
  const auto names = Regex::Compile(pattern);
  if (!names.ok()) return Annotate(names.status(), "debug.grad_check");
  SHOAL_ASSIGN_OR_RETURN(const auto model, ModelFor(job));
  LocalParams params(model->params(), DType::kF64);
  OpContext ops{.pool = &pool};
  for (const Param* param : model->params()) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor weight, dp.WholeWeight(*param));
    ops::Copy(ops, weight, params.Weight(*param));
  }
  SHOAL_RETURN_IF_ERROR(dp.ReleaseWeights());
  if (!batch.x.defined()) return "";
  SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(int64_t{64} << 30, DeviceKind::kCpu));
  const Batch cut = FirstRows(batch);
  const double rows = static_cast<double>(cut.layout->labels.size());
  const auto loss_and_gradients = [&] {
    params.BeginStep();
    StepContext ctx({.ops = ops,
                     .arena = arena.get(),
                     .params = &params,
                     .compute = DType::kF64,
                     .seed = job.seed(),
                     .grad_scale = 1.0 / rows});
    const Batch y = model->Forward(ctx, cut);
    model->Backward(ctx, y);
    return ctx.losses().at("loss").first / rows;
  };
  struct Probe {
    const Param* param;
    int64_t element;
    double gradient, largest;
  };
  loss_and_gradients();
  std::vector<Probe> probes;
  for (const Param* param : model->params()) {
    if (!names->Matches(param->name)) continue;
    const double* grad = params.Grad(*param).grad.data<double>();
    const int64_t largest =
        std::max_element(grad, grad + param->size(), [](double a, double b) { return std::abs(a) < std::abs(b); }) -
        grad;
    const auto drawn = static_cast<int64_t>(NameHash(param->name) % static_cast<uint64_t>(param->size()));
    for (const int64_t element : {largest, drawn})
      probes.push_back({param, element, grad[element], std::abs(grad[largest])});
  }
  if (probes.empty())
    return absl::InvalidArgumentError(absl::StrCat("debug.grad_check: no parameter's name matches '", pattern, "'"));
  std::string table = absl::StrFormat("%-40s %10s %14s %14s\n", "parameter", "element", "gradient", "difference");
  bool wrong = false;
  for (const Probe& probe : probes) {
    constexpr double kStep = 4e-4;
    double& value = params.Weight(*probe.param).data<double>()[probe.element];
    const double at = value;
    const auto loss = [&](double offset) {
      value = at + offset * kStep;
      return loss_and_gradients();
    };
    const double difference = (loss(-2) - 8 * loss(-1) + 8 * loss(1) - loss(2)) / (12 * kStep);
    value = at;
    const bool missed = !(std::abs(difference - probe.gradient) <= 1e-5 * probe.largest + 1e-11);
    wrong = wrong || missed;
    absl::StrAppendFormat(&table, "%-40s %10d %14.7e %14.7e%s\n", probe.param->name, probe.element, probe.gradient,
                          difference, missed ? "  WRONG" : "");
  }
  if (wrong) return absl::AbortedError(absl::StrCat("debug.grad_check found wrong gradients\n", table));
  return table;
}

}  // namespace shoal
