#include "models/batch_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "models/layers.h"

namespace shoal {
namespace {

// Calls fn with the elements of an f32 or f64 tensor.
template <class F>
void WithElements(const Tensor& t, F fn) {
  if (t.dtype() == DType::kF64)
    fn(t.data<double>());
  else
    fn(t.data<float>());
}

}  // namespace

BatchNorm::BatchNorm(const Options& options)
    : options_(options),
      weight_(VectorParam(options.name + ".weight", options.channels, options.scale_init)),
      bias_(VectorParam(options.name + ".bias", options.channels, InitKind::kZeros)),
      running_mean_{options.name + ".running_mean", Tensor::Zeros({options.channels}, DType::kF32)},
      running_var_{options.name + ".running_var", Tensor::Zeros({options.channels}, DType::kF32)} {
  std::fill_n(running_var_.value.data<float>(), options.channels, 1.0f);
}

BatchNorm::Saved BatchNorm::Statistics(StepContext& ctx, const Tensor& x) {
  const int64_t c = options_.channels;
  Saved saved{ctx.Frame({c}, ctx.stats_dtype()), ctx.Frame({c}, ctx.stats_dtype()), 0};
  const auto pixels = static_cast<double>(x.size() / std::max<int64_t>(1, c));
  float *mean = running_mean_.value.data<float>(), *var = running_var_.value.data<float>();
  const auto store = [&](int64_t i, double m, double v) {
    const double rstd = 1 / std::sqrt(v + options_.epsilon);
    WithElements(saved.mean, [&](auto* to) { to[i] = static_cast<std::remove_reference_t<decltype(*to)>>(m); });
    WithElements(saved.rstd, [&](auto* to) { to[i] = static_cast<std::remove_reference_t<decltype(*to)>>(rstd); });
  };
  if (ctx.mode() == Mode::kEval) {
    if (ctx.dry_run()) return saved;
    for (int64_t i = 0; i < c; ++i) store(i, static_cast<double>(mean[i]), static_cast<double>(var[i]));
    return saved;
  }
  const Tensor sums = ctx.Live({2 * c}, DType::kF64);
  ops::BatchNormSums(ctx.ops(), x, sums);
  saved.count = pixels;
  if (ctx.dry_run()) return saved;
  std::vector<double> values(sums.data<double>(), sums.data<double>() + 2 * c);
  values.push_back(pixels);
  if (options_.span == Span::kAllRanks) ctx.SumOverRanks(options_.name, absl::MakeSpan(values));
  saved.count = values.back();
  const double n = std::max(1.0, saved.count), m = options_.momentum;
  for (int64_t i = 0; i < c; ++i) {
    const double batch_mean = values[i] / n, batch_var = std::max(0.0, values[c + i] / n - batch_mean * batch_mean);
    store(i, batch_mean, batch_var);
    if (ctx.replaying() || saved.count < 1) continue;
    const double unbiased = batch_var * n / std::max(1.0, n - 1);
    mean[i] = static_cast<float>((1 - m) * static_cast<double>(mean[i]) + m * batch_mean);
    var[i] = static_cast<float>((1 - m) * static_cast<double>(var[i]) + m * unbiased);
  }
  return saved;
}

ops::BatchNormInputs BatchNorm::Inputs(StepContext& ctx, const Saved& saved, const Tensor& x, const Tensor& residual,
                                       ops::Relu relu) const {
  return {x, residual, saved.mean, saved.rstd, ctx.Weight(weight_), ctx.Weight(bias_), relu};
}

void BatchNorm::Apply(StepContext& ctx, const Saved& saved, const Tensor& x, const Tensor& residual, ops::Relu relu,
                      const Tensor& y) {
  ops::BatchNormFwd(ctx.ops(), Inputs(ctx, saved, x, residual, relu), y);
}

void BatchNorm::Backward(StepContext& ctx, const Saved& saved, const Tensor& dy, const Tensor& x,
                         const Tensor& residual, ops::Relu relu, const Tensor& dx, const Tensor& dresidual) {
  const int64_t c = options_.channels;
  const auto in = Inputs(ctx, saved, x, residual, relu);
  const Tensor sums = ctx.Live({2 * c}, DType::kF64);
  ops::BatchNormBwdSums(ctx.ops(), dy, in, sums);
  // This rank's part: gradients are summed over ranks later.
  const auto take = [&](const Param& param, int64_t first) {
    ctx.WeightGradNow(param, [&](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor>) {
      if (sinks[0].accumulate == ops::Accumulate::kOverwrite) ops::Fill(ops, sinks[0].grad, 0);
      if (sums.meta()) return;
      WithElements(sinks[0].grad, [&](auto* to) {
        for (int64_t i = 0; i < c; ++i)
          to[i] += static_cast<std::remove_reference_t<decltype(*to)>>(sums.data<double>()[first + i]);
      });
    });
  };
  take(bias_, 0);
  take(weight_, c);
  if (options_.span == Span::kAllRanks && !sums.meta())
    ctx.SumOverRanks(options_.name, absl::MakeSpan(sums.data<double>(), static_cast<size_t>(2 * c)));
  ops::BatchNormBwdInput(ctx.ops(), dy, in, sums, saved.count, dx, dresidual);
}

void BatchNorm::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  visit(weight_);
  visit(bias_);
}
void BatchNorm::VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) {
  visit(running_mean_);
  visit(running_var_);
}

}  // namespace shoal
