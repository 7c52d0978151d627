// The vectorised inner loops of optimizers, one per dispatch target. No multiplication is fused with an addition
// (-ffp-contract=off) unless its product is exact, so every target gives the same bits, as replicated state demands.
// Arrays do not overlap.
#pragma once

#include <cstdint>

namespace shoal::optim {

// The least elements that are worth a task of their own.
inline constexpr int64_t kGrain = 1 << 14;

// Scalars of a step are worked out in double by the caller and rounded once.
struct AdamWScalars {
  float grad_scale;
  float beta1, fresh1, beta2, fresh2;  // fresh = 1 - beta, rounded from double: 1.0f - 0.999f would be 3e-5 off
  float keep;                          // the share of a weight that decay leaves
  float step_size;                     // eta_t / (1 - beta1^t)
  float inverse_bias2;                 // 1 / (1 - beta2^t)
  float epsilon;
};
// m = beta1 m + fresh1 g; v = beta2 v + fresh2 g^2; w = keep w - step_size m / (sqrt(v inverse_bias2) + epsilon).
void AdamWRun(const AdamWScalars& s, const float* grad, int64_t n, float* weight, float* m, float* v);

struct SgdScalars {
  float grad_scale, momentum, weight_decay, learning_rate;
  bool nesterov;
};
// g += weight_decay w; b = momentum b + g; w -= learning_rate (nesterov ? g + momentum b : b).
void SgdRun(const SgdScalars& s, const float* grad, int64_t n, float* weight, float* buffer);

struct LambScalars {
  float grad_scale, beta1, fresh1, beta2, fresh2, inverse_bias1, inverse_bias2, epsilon, weight_decay;
};
// m and v as in AdamW.
void MomentsRun(const LambScalars& s, const float* grad, int64_t n, float* m, float* v);
// u = m inverse_bias1 / (sqrt(v inverse_bias2) + epsilon) + weight_decay w. Adds up squares in fp64: sums[0] += sum
// w^2, sums[1] += sum u^2.
void LambDirectionRun(const LambScalars& s, int64_t n, const float* weight, const float* m, const float* v, float* u,
                      double* sums);
// Both in one pass; u takes the place of the gradient.
void LambMomentsRun(const LambScalars& s, int64_t n, const float* weight, float* m, float* v, float* grad,
                    double* sums);

struct LarsScalars {
  float grad_scale, momentum, weight_decay, rate;
  bool nesterov;
};
// Adds up squares in fp64: sums[0] += sum w^2, sums[1] += sum (g + weight_decay w)^2.
void LarsNormsRun(const LarsScalars& s, const float* grad, int64_t n, const float* weight, double* sums);
// d = rate (g + weight_decay w); v = momentum v + d; w -= nesterov ? d + momentum v : v.
void LarsRun(const LarsScalars& s, const float* grad, int64_t n, float* weight, float* v);

struct AdaGradScalars {
  float grad_scale, weight_decay, rate, initial, epsilon;
};
// g += weight_decay w; sum += g^2; w -= rate g / (sqrt(initial + sum) + epsilon).
void AdaGradRun(const AdaGradScalars& s, const float* grad, int64_t n, float* weight, float* sum);

struct MuonScalars {
  float grad_scale, momentum, fresh;
  bool nesterov;
};
// b = momentum b + fresh g; u = nesterov ? fresh g + momentum b : b.
void MuonMomentumRun(const MuonScalars& s, const float* grad, int64_t n, float* buffer, float* u);

// out = a x; out = a x + b out.
void ScaleRun(float a, const float* x, int64_t n, float* out);
void CombineRun(float a, const float* x, float b, int64_t n, float* out);

}  // namespace shoal::optim
