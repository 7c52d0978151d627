#include "runtime/module/local_params.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/rng.h"

namespace shoal {

LocalParams::LocalParams(std::vector<const Param*> params, DType compute, DeviceKind device)
    : params_(std::move(params)), compute_(compute), device_(device), grads_(params_.size()), touched_(params_.size()) {
  for (const Param* param : params_) weights_.push_back(Tensor::Zeros(param->shape, compute, device));
}

GradSink LocalParams::Grad(const Param& param) {
  Tensor& grad = grads_[param.id];
  if (!grad.defined()) grad = Tensor::Zeros(param.shape, compute_ == DType::kF64 ? DType::kF64 : DType::kF32, device_);
  const bool first = !touched_[param.id];
  touched_[param.id] = true;
  return {grad, first ? ops::Accumulate::kOverwrite : ops::Accumulate::kAdd};
}

void LocalParams::BeginStep() {
  touched_.assign(params_.size(), false);
  ready_.clear();
}

void LocalParams::Initialize(ThreadPool& pool, uint64_t seed) {
  if (device_ == DeviceKind::kMeta) return;
  OpContext ctx{.pool = &pool};
  for (const Param* param : params_) {
    const Tensor& weight = weights_[param->id];
    if (weight.dtype() != DType::kBF16) {
      InitialValues(pool, *param, seed, 0, weight);
      continue;
    }
    const Tensor wide = Tensor::Zeros(param->shape, DType::kF32);
    InitialValues(pool, *param, seed, 0, wide);
    ops::Copy(ctx, wide, weight);
  }
}

namespace {

// Elements 4i .. 4i + 3 come from the four words of counter i: two Box-Muller pairs.
template <class T>
void NormalRun(const Rng& rng, double std, int64_t begin, int64_t end, T* to) {
  for (int64_t i = begin / 4 * 4; i < end; i += 4) {
    const auto words = rng.Words(0, static_cast<uint64_t>(i / 4));
    float values[4];
    for (int pair = 0; pair < 2; ++pair) {
      const float u = (static_cast<float>(words[2 * pair] >> 8) + 0.5f) * 0x1p-24f;
      const float angle = 6.28318530717958648f * static_cast<float>(words[2 * pair + 1] >> 8) * 0x1p-24f;
      const float radius = std::sqrt(-2.0f * std::log(u));
      values[2 * pair] = radius * std::cos(angle);
      values[2 * pair + 1] = radius * std::sin(angle);
    }
    for (int64_t j = std::max(i, begin); j < std::min(i + 4, end); ++j)
      to[j - begin] = static_cast<T>(std * values[j - i]);
  }
}

}  // namespace

void InitialValues(ThreadPool& pool, const Param& param, uint64_t seed, int64_t begin, const Tensor& out) {
  const Rng rng({seed, RngPurpose::kInit, NameHash(param.name)});
  const auto fill = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    pool.ParallelFor(out.size(), 1 << 14, [&](int64_t first, int64_t last) {
      if (param.init == InitKind::kNormal)
        NormalRun(rng, param.init_std, begin + first, begin + last, to + first);
      else
        std::fill(to + first, to + last, param.init == InitKind::kOnes ? T(1) : T(0));
    });
  };
  if (out.dtype() == DType::kF64)
    fill(out.data<double>());
  else
    fill(out.data<float>());
}

}  // namespace shoal
