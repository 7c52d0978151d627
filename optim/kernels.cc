#include "optim/kernels.h"

#include <cmath>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::optim {
namespace HWY_NAMESPACE {

void AdamWLoop(const AdamWScalars& s, const float* __restrict grad, int64_t n, float* __restrict weight,
               float* __restrict m, float* __restrict v) {
  const AdamWScalars c = s;
  const float one_minus_beta1 = 1.0f - c.beta1, one_minus_beta2 = 1.0f - c.beta2;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * c.grad_scale;
    const float mean = c.beta1 * m[i] + one_minus_beta1 * g;
    const float square = c.beta2 * v[i] + one_minus_beta2 * (g * g);
    m[i] = mean;
    v[i] = square;
    weight[i] = c.keep * weight[i] - c.step_size * (mean / (std::sqrt(square * c.inverse_bias2) + c.epsilon));
  }
}

void SgdLoop(const SgdScalars& s, const float* __restrict grad, int64_t n, float* __restrict weight,
             float* __restrict buffer) {
  const SgdScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * c.grad_scale + c.weight_decay * weight[i];
    const float b = c.momentum * buffer[i] + g;
    buffer[i] = b;
    weight[i] = weight[i] - c.learning_rate * (c.nesterov ? g + c.momentum * b : b);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::optim
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::optim {
HWY_EXPORT(AdamWLoop);
HWY_EXPORT(SgdLoop);
void AdamWRun(const AdamWScalars& s, const float* grad, int64_t n, float* weight, float* m, float* v) {
  HWY_DYNAMIC_DISPATCH(AdamWLoop)(s, grad, n, weight, m, v);
}
void SgdRun(const SgdScalars& s, const float* grad, int64_t n, float* weight, float* buffer) {
  HWY_DYNAMIC_DISPATCH(SgdLoop)(s, grad, n, weight, buffer);
}
}  // namespace shoal::optim
#endif
