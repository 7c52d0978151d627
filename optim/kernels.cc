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

// Sums of squares in fp64, in 16 lanes: the same bits for any vector width.
constexpr int kLanes = 16;
struct Squares {
  double lanes[kLanes] = {};
  HWY_INLINE double Sum() const {
    double sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
    return sum;
  }
};

// The square of a float is exact in double, so that fusing it with the sum changes no bits.
HWY_INLINE double AddSquare(double sum, float x) {
  const auto wide = static_cast<double>(x);
#if HWY_NATIVE_FMA
  return __builtin_fma(wide, wide, sum);
#else
  return sum + wide * wide;
#endif
}

// Adds the squares of weight[i] and of what direction(i) returns, for all i < n, to sums[0] and sums[1].
template <class Direction>
HWY_INLINE void AddNorms(int64_t n, const float* __restrict weight, Direction direction, double* __restrict sums) {
  Squares weights, directions;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      weights.lanes[l] = AddSquare(weights.lanes[l], weight[i + l]);
      directions.lanes[l] = AddSquare(directions.lanes[l], direction(i + l));
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    weights.lanes[l] = AddSquare(weights.lanes[l], weight[i]);
    directions.lanes[l] = AddSquare(directions.lanes[l], direction(i));
  }
  sums[0] += weights.Sum();
  sums[1] += directions.Sum();
}

void AdamWLoop(const AdamWScalars& s, const float* __restrict grad, int64_t n, float* __restrict weight,
               float* __restrict m, float* __restrict v) {
  const AdamWScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * c.grad_scale;
    const float mean = c.beta1 * m[i] + c.fresh1 * g;
    const float square = c.beta2 * v[i] + c.fresh2 * (g * g);
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

void MomentsLoop(const LambScalars& s, const float* __restrict grad, int64_t n, float* __restrict m,
                 float* __restrict v) {
  const LambScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * c.grad_scale;
    m[i] = c.beta1 * m[i] + c.fresh1 * g;
    v[i] = c.beta2 * v[i] + c.fresh2 * (g * g);
  }
}

HWY_INLINE float LambDirection(const LambScalars& c, float weight, float m, float v) {
  return m * c.inverse_bias1 / (std::sqrt(v * c.inverse_bias2) + c.epsilon) + c.weight_decay * weight;
}

void LambDirectionLoop(const LambScalars& s, int64_t n, const float* __restrict weight, const float* __restrict m,
                       const float* __restrict v, float* __restrict u, double* __restrict sums) {
  const LambScalars c = s;
  const auto direction = [&](int64_t i) HWY_ATTR { return u[i] = LambDirection(c, weight[i], m[i], v[i]); };
  AddNorms(n, weight, direction, sums);
}

void LambMomentsLoop(const LambScalars& s, int64_t n, const float* __restrict weight, float* __restrict m,
                     float* __restrict v, float* __restrict grad, double* __restrict sums) {
  const LambScalars c = s;
  const auto direction = [&](int64_t i) HWY_ATTR {
    const float g = grad[i] * c.grad_scale;
    const float mean = c.beta1 * m[i] + c.fresh1 * g;
    const float square = c.beta2 * v[i] + c.fresh2 * (g * g);
    m[i] = mean;
    v[i] = square;
    return grad[i] = LambDirection(c, weight[i], mean, square);
  };
  AddNorms(n, weight, direction, sums);
}

void LarsNormsLoop(const LarsScalars& s, const float* __restrict grad, int64_t n, const float* __restrict weight,
                   double* __restrict sums) {
  const LarsScalars c = s;
  const auto direction = [&](int64_t i) HWY_ATTR { return grad[i] * c.grad_scale + c.weight_decay * weight[i]; };
  AddNorms(n, weight, direction, sums);
}

void LarsLoop(const LarsScalars& s, const float* __restrict grad, int64_t n, float* __restrict weight,
              float* __restrict v) {
  const LarsScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float d = c.rate * (grad[i] * c.grad_scale + c.weight_decay * weight[i]);
    const float velocity = c.momentum * v[i] + d;
    v[i] = velocity;
    weight[i] = weight[i] - (c.nesterov ? d + c.momentum * velocity : velocity);
  }
}

void AdaGradLoop(const AdaGradScalars& s, const float* __restrict grad, int64_t n, float* __restrict weight,
                 float* __restrict sum) {
  const AdaGradScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * c.grad_scale + c.weight_decay * weight[i];
    const float total = sum[i] + g * g;
    sum[i] = total;
    weight[i] = weight[i] - c.rate * (g / (std::sqrt(c.initial + total) + c.epsilon));
  }
}

void MuonMomentumLoop(const MuonScalars& s, const float* __restrict grad, int64_t n, float* __restrict buffer,
                      float* __restrict u) {
  const MuonScalars c = s;
  for (int64_t i = 0; i < n; ++i) {
    const float g = c.fresh * (grad[i] * c.grad_scale);
    const float b = c.momentum * buffer[i] + g;
    buffer[i] = b;
    u[i] = c.nesterov ? g + c.momentum * b : b;
  }
}

void ScaleLoop(float a, const float* __restrict x, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = a * x[i];
}

void CombineLoop(float a, const float* __restrict x, float b, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = a * x[i] + b * out[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::optim
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::optim {
HWY_EXPORT(AdamWLoop);
HWY_EXPORT(SgdLoop);
HWY_EXPORT(MomentsLoop);
HWY_EXPORT(LambDirectionLoop);
HWY_EXPORT(LambMomentsLoop);
HWY_EXPORT(LarsNormsLoop);
HWY_EXPORT(LarsLoop);
HWY_EXPORT(AdaGradLoop);
HWY_EXPORT(MuonMomentumLoop);
HWY_EXPORT(ScaleLoop);
HWY_EXPORT(CombineLoop);

void AdamWRun(const AdamWScalars& s, const float* grad, int64_t n, float* weight, float* m, float* v) {
  HWY_DYNAMIC_DISPATCH(AdamWLoop)(s, grad, n, weight, m, v);
}
void SgdRun(const SgdScalars& s, const float* grad, int64_t n, float* weight, float* buffer) {
  HWY_DYNAMIC_DISPATCH(SgdLoop)(s, grad, n, weight, buffer);
}
void MomentsRun(const LambScalars& s, const float* grad, int64_t n, float* m, float* v) {
  HWY_DYNAMIC_DISPATCH(MomentsLoop)(s, grad, n, m, v);
}
void LambDirectionRun(const LambScalars& s, int64_t n, const float* weight, const float* m, const float* v, float* u,
                      double* sums) {
  HWY_DYNAMIC_DISPATCH(LambDirectionLoop)(s, n, weight, m, v, u, sums);
}
void LambMomentsRun(const LambScalars& s, int64_t n, const float* weight, float* m, float* v, float* grad,
                    double* sums) {
  HWY_DYNAMIC_DISPATCH(LambMomentsLoop)(s, n, weight, m, v, grad, sums);
}
void LarsNormsRun(const LarsScalars& s, const float* grad, int64_t n, const float* weight, double* sums) {
  HWY_DYNAMIC_DISPATCH(LarsNormsLoop)(s, grad, n, weight, sums);
}
void LarsRun(const LarsScalars& s, const float* grad, int64_t n, float* weight, float* v) {
  HWY_DYNAMIC_DISPATCH(LarsLoop)(s, grad, n, weight, v);
}
void AdaGradRun(const AdaGradScalars& s, const float* grad, int64_t n, float* weight, float* sum) {
  HWY_DYNAMIC_DISPATCH(AdaGradLoop)(s, grad, n, weight, sum);
}
void MuonMomentumRun(const MuonScalars& s, const float* grad, int64_t n, float* buffer, float* u) {
  HWY_DYNAMIC_DISPATCH(MuonMomentumLoop)(s, grad, n, buffer, u);
}
void ScaleRun(float a, const float* x, int64_t n, float* out) { HWY_DYNAMIC_DISPATCH(ScaleLoop)(a, x, n, out); }
void CombineRun(float a, const float* x, float b, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(CombineLoop)(a, x, b, n, out);
}
}  // namespace shoal::optim
#endif
