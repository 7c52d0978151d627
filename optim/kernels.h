// The vectorised inner loops of optimizers, one per dispatch target. Multiplications and additions are never fused
// (-ffp-contract=off), so every target gives the same bits, as replicated state demands.
#pragma once

#include <cstdint>

namespace shoal::optim {

// Scalars of one AdamW step, worked out in double by the caller.
struct AdamWScalars {
  float grad_scale, beta1, beta2, keep;  // keep = 1 - eta_t * weight_decay
  float step_size;                       // eta_t / (1 - beta1^t)
  float inverse_bias2;                   // 1 / (1 - beta2^t)
  float epsilon;
};
// m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = keep w - step_size m / (sqrt(v inverse_bias2) +
// epsilon).
void AdamWRun(const AdamWScalars& s, const float* grad, int64_t n, float* weight, float* m, float* v);

struct SgdScalars {
  float grad_scale, momentum, weight_decay, learning_rate;
  bool nesterov;
};
// g += weight_decay w; b = momentum b + g; w -= learning_rate (nesterov ? g + momentum b : b).
void SgdRun(const SgdScalars& s, const float* grad, int64_t n, float* weight, float* buffer);

}  // namespace shoal::optim
