// One compilation per dispatch target; see row_kernels.h.
#include "runtime/ops/cpu/row_kernels.h"

#include <cmath>
#include <cstring>
#include <limits>

// Three targets are enough: what every x86-64 has, AVX2 with FMA, AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/cpu/row_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::cpu {
namespace HWY_NAMESPACE {

#include "runtime/ops/cpu/exp-inl.h"
#include "runtime/ops/cpu/row_kernels-inl.h"

void LayerNormRowF(const float* x, const float* weight, const float* bias, int64_t n, float epsilon, float* y,
                   float* stats) {
  LayerNormRowT(x, weight, bias, n, epsilon, y, stats);
}
void LayerNormRowD(const double* x, const double* weight, const double* bias, int64_t n, double epsilon, double* y,
                   double* stats) {
  LayerNormRowT(x, weight, bias, n, epsilon, y, stats);
}
void LayerNormBackRowF(const float* dy, const float* x, const float* weight, const float* stats, int64_t n,
                       float add_dx, float* dx, float* dweight, float* dbias) {
  LayerNormBackRowT(dy, x, weight, stats, n, add_dx, dx, dweight, dbias);
}
void LayerNormBackRowD(const double* dy, const double* x, const double* weight, const double* stats, int64_t n,
                       double add_dx, double* dx, double* dweight, double* dbias) {
  LayerNormBackRowT(dy, x, weight, stats, n, add_dx, dx, dweight, dbias);
}
void RmsNormRowF(const float* x, const float* weight, int64_t n, float epsilon, float* y, float* rstd) {
  RmsNormRowT(x, weight, n, epsilon, y, rstd);
}
void RmsNormRowD(const double* x, const double* weight, int64_t n, double epsilon, double* y, double* rstd) {
  RmsNormRowT(x, weight, n, epsilon, y, rstd);
}
void RmsNormBackRowF(const float* dy, const float* x, const float* weight, float rstd, int64_t n, float add_dx,
                     float* dx, float* dweight) {
  RmsNormBackRowT(dy, x, weight, rstd, n, add_dx, dx, dweight);
}
void RmsNormBackRowD(const double* dy, const double* x, const double* weight, double rstd, int64_t n, double add_dx,
                     double* dx, double* dweight) {
  RmsNormBackRowT(dy, x, weight, rstd, n, add_dx, dx, dweight);
}
void GeluRowF(const float* x, int64_t n, float* y) { GeluRowT(x, n, y); }
void GeluRowD(const double* x, int64_t n, double* y) { GeluRowT(x, n, y); }
void GeluBackRowF(const float* dy, const float* x, int64_t n, float* dx) { GeluBackRowT(dy, x, n, dx); }
void GeluBackRowD(const double* dy, const double* x, int64_t n, double* dx) { GeluBackRowT(dy, x, n, dx); }
void SwiGluRowF(const float* gate, const float* up, int64_t n, float* y) { SwiGluRowT(gate, up, n, y); }
void SwiGluRowD(const double* gate, const double* up, int64_t n, double* y) { SwiGluRowT(gate, up, n, y); }
void SwiGluBackRowF(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup) {
  SwiGluBackRowT(dy, gate, up, n, dgate, dup);
}
void SwiGluBackRowD(const double* dy, const double* gate, const double* up, int64_t n, double* dgate, double* dup) {
  SwiGluBackRowT(dy, gate, up, n, dgate, dup);
}
void RopeRowsF(float* x, int64_t count, int64_t stride, const float* cosine, const float* sine, int64_t n, float sign) {
  RopeRowsT(x, count, stride, cosine, sine, n, sign);
}
void RopeRowsD(double* x, int64_t count, int64_t stride, const double* cosine, const double* sine, int64_t n,
               double sign) {
  RopeRowsT(x, count, stride, cosine, sine, n, sign);
}
float MaxRowF(const float* x, int64_t n) { return MaxRowT(x, n); }
double MaxRowD(const double* x, int64_t n) { return MaxRowT(x, n); }
float ExpRowF(float* x, int64_t n, float shift) { return ExpRowT(x, n, shift); }
double ExpRowD(double* x, int64_t n, double shift) { return ExpRowT(x, n, shift); }
void SoftmaxBackRowF(const float* p, float* dp, int64_t n, float delta, float scale) {
  SoftmaxBackRowT(p, dp, n, delta, scale);
}
void SoftmaxBackRowD(const double* p, double* dp, int64_t n, double delta, double scale) {
  SoftmaxBackRowT(p, dp, n, delta, scale);
}
float DotRowF(const float* a, const float* b, int64_t n) { return DotRowT(a, b, n); }
double DotRowD(const double* a, const double* b, int64_t n) { return DotRowT(a, b, n); }
void AddRowF(const float* a, const float* b, int64_t n, float* y) { AddRowT(a, b, n, y); }
void AddRowD(const double* a, const double* b, int64_t n, double* y) { AddRowT(a, b, n, y); }
void ScaleRowF(float* y, int64_t n, float factor) { ScaleRowT(y, n, factor); }
void ScaleRowD(double* y, int64_t n, double factor) { ScaleRowT(y, n, factor); }
void ShiftRowF(float* y, int64_t n, float summand) { ShiftRowT(y, n, summand); }
void ShiftRowD(double* y, int64_t n, double summand) { ShiftRowT(y, n, summand); }
double SumRowF(const float* x, int64_t n) { return SumRowT(x, n); }
double SumRowD(const double* x, int64_t n) { return SumRowT(x, n); }
void AxpyRowF(const float* x, int64_t n, float factor, float* y) { AxpyRowT(x, n, factor, y); }
void AxpyRowD(const double* x, int64_t n, double factor, double* y) { AxpyRowT(x, n, factor, y); }
double SumOfSquaresRowF(const float* x, int64_t n) { return SumOfSquaresRowT(x, n); }
double SumOfSquaresRowD(const double* x, int64_t n) { return SumOfSquaresRowT(x, n); }
float MaxAbsRowF(const float* x, int64_t n) { return MaxAbsRowT(x, n); }
double MaxAbsRowD(const double* x, int64_t n) { return MaxAbsRowT(x, n); }

void ToFloatN(const BFloat16* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].bits) << 16;
    std::memcpy(&to[i], &bits, 4);
  }
}
void FromFloatN(const float* from, int64_t n, BFloat16* to) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u;
    std::memcpy(&u, &from[i], 4);
    const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    const uint32_t quiet = u >> 16 | 0x40;
    to[i].bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

// Philox4x32-10 on `kCounters` counters side by side: the compiler makes vectors of the inner loops.
constexpr int kCounters = 32;
void PhiloxBlock(uint64_t counter, uint32_t k0, uint32_t k1, uint32_t (*w)[kCounters]) {
  for (int j = 0; j < kCounters; ++j) {
    w[0][j] = static_cast<uint32_t>(counter + static_cast<uint64_t>(j));
    w[1][j] = static_cast<uint32_t>((counter + static_cast<uint64_t>(j)) >> 32);
    w[2][j] = w[3][j] = 0;
  }
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < kCounters; ++j) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * w[0][j], p1 = uint64_t{0xCD9E8D57u} * w[2][j];
      w[0][j] = static_cast<uint32_t>(p1 >> 32) ^ w[1][j] ^ k0;
      w[2][j] = static_cast<uint32_t>(p0 >> 32) ^ w[3][j] ^ k1;
      w[1][j] = static_cast<uint32_t>(p1);
      w[3][j] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}
void StochasticRoundN(const float* from, int64_t n, uint32_t key0, uint32_t key1, uint64_t first, BFloat16* to) {
  constexpr int kPerCounter = 8;
  uint32_t w[4][kCounters];
  uint32_t lot[kCounters * kPerCounter];
  for (int64_t i = 0; i < n;) {
    const uint64_t counter = (first + static_cast<uint64_t>(i)) / kPerCounter;
    PhiloxBlock(counter, key0, key1, w);
    for (int j = 0; j < kCounters; ++j) {
      for (int l = 0; l < kPerCounter; ++l) lot[j * kPerCounter + l] = w[l / 2][j] >> (16 * (l % 2)) & 0xffff;
    }
    const auto skip = static_cast<int64_t>((first + static_cast<uint64_t>(i)) % kPerCounter);
    const int64_t count = n - i < kCounters * kPerCounter - skip ? n - i : kCounters * kPerCounter - skip;
    for (int64_t e = 0; e < count; ++e) {
      uint32_t u;
      std::memcpy(&u, &from[i + e], 4);
      const bool finite = (u & 0x7f800000u) != 0x7f800000u;
      const uint32_t rounded = (u + lot[skip + e]) >> 16;
      const uint32_t kept = u >> 16 | ((u & 0x7fffffffu) > 0x7f800000u ? 0x40u : 0u);
      to[i + e].bits = static_cast<uint16_t>(finite ? rounded : kept);
    }
    i += count;
  }
}
std::string TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace shoal::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::cpu {

HWY_EXPORT(LayerNormRowF);
HWY_EXPORT(LayerNormRowD);
HWY_EXPORT(LayerNormBackRowF);
HWY_EXPORT(LayerNormBackRowD);
HWY_EXPORT(RmsNormRowF);
HWY_EXPORT(RmsNormRowD);
HWY_EXPORT(RmsNormBackRowF);
HWY_EXPORT(RmsNormBackRowD);
HWY_EXPORT(GeluRowF);
HWY_EXPORT(GeluRowD);
HWY_EXPORT(GeluBackRowF);
HWY_EXPORT(GeluBackRowD);
HWY_EXPORT(SwiGluRowF);
HWY_EXPORT(SwiGluRowD);
HWY_EXPORT(SwiGluBackRowF);
HWY_EXPORT(SwiGluBackRowD);
HWY_EXPORT(RopeRowsF);
HWY_EXPORT(RopeRowsD);
HWY_EXPORT(MaxRowF);
HWY_EXPORT(MaxRowD);
HWY_EXPORT(ExpRowF);
HWY_EXPORT(ExpRowD);
HWY_EXPORT(SoftmaxBackRowF);
HWY_EXPORT(SoftmaxBackRowD);
HWY_EXPORT(DotRowF);
HWY_EXPORT(DotRowD);
HWY_EXPORT(AddRowF);
HWY_EXPORT(AddRowD);
HWY_EXPORT(ScaleRowF);
HWY_EXPORT(ScaleRowD);
HWY_EXPORT(ShiftRowF);
HWY_EXPORT(ShiftRowD);
HWY_EXPORT(SumRowF);
HWY_EXPORT(SumRowD);
HWY_EXPORT(AxpyRowF);
HWY_EXPORT(AxpyRowD);
HWY_EXPORT(SumOfSquaresRowF);
HWY_EXPORT(SumOfSquaresRowD);
HWY_EXPORT(MaxAbsRowF);
HWY_EXPORT(MaxAbsRowD);
HWY_EXPORT(ToFloatN);
HWY_EXPORT(FromFloatN);
HWY_EXPORT(StochasticRoundN);
HWY_EXPORT(TargetName);

void LayerNormRow(const float* x, const float* weight, const float* bias, int64_t n, float epsilon, float* y,
                  float* stats) {
  HWY_DYNAMIC_DISPATCH(LayerNormRowF)(x, weight, bias, n, epsilon, y, stats);
}
void LayerNormRow(const double* x, const double* weight, const double* bias, int64_t n, double epsilon, double* y,
                  double* stats) {
  HWY_DYNAMIC_DISPATCH(LayerNormRowD)(x, weight, bias, n, epsilon, y, stats);
}
void LayerNormBackRow(const float* dy, const float* x, const float* weight, const float* stats, int64_t n, float add_dx,
                      float* dx, float* dweight, float* dbias) {
  HWY_DYNAMIC_DISPATCH(LayerNormBackRowF)(dy, x, weight, stats, n, add_dx, dx, dweight, dbias);
}
void LayerNormBackRow(const double* dy, const double* x, const double* weight, const double* stats, int64_t n,
                      double add_dx, double* dx, double* dweight, double* dbias) {
  HWY_DYNAMIC_DISPATCH(LayerNormBackRowD)(dy, x, weight, stats, n, add_dx, dx, dweight, dbias);
}
void RmsNormRow(const float* x, const float* weight, int64_t n, float epsilon, float* y, float* rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormRowF)(x, weight, n, epsilon, y, rstd);
}
void RmsNormRow(const double* x, const double* weight, int64_t n, double epsilon, double* y, double* rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormRowD)(x, weight, n, epsilon, y, rstd);
}
void RmsNormBackRow(const float* dy, const float* x, const float* weight, float rstd, int64_t n, float add_dx,
                    float* dx, float* dweight) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackRowF)(dy, x, weight, rstd, n, add_dx, dx, dweight);
}
void RmsNormBackRow(const double* dy, const double* x, const double* weight, double rstd, int64_t n, double add_dx,
                    double* dx, double* dweight) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackRowD)(dy, x, weight, rstd, n, add_dx, dx, dweight);
}
void GeluRow(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(GeluRowF)(x, n, y); }
void GeluRow(const double* x, int64_t n, double* y) { HWY_DYNAMIC_DISPATCH(GeluRowD)(x, n, y); }
void GeluBackRow(const float* dy, const float* x, int64_t n, float* dx) {
  HWY_DYNAMIC_DISPATCH(GeluBackRowF)(dy, x, n, dx);
}
void GeluBackRow(const double* dy, const double* x, int64_t n, double* dx) {
  HWY_DYNAMIC_DISPATCH(GeluBackRowD)(dy, x, n, dx);
}
void SwiGluRow(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(SwiGluRowF)(gate, up, n, y);
}
void SwiGluRow(const double* gate, const double* up, int64_t n, double* y) {
  HWY_DYNAMIC_DISPATCH(SwiGluRowD)(gate, up, n, y);
}
void SwiGluBackRow(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackRowF)(dy, gate, up, n, dgate, dup);
}
void SwiGluBackRow(const double* dy, const double* gate, const double* up, int64_t n, double* dgate, double* dup) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackRowD)(dy, gate, up, n, dgate, dup);
}
void RopeRows(float* x, int64_t count, int64_t stride, const float* cosine, const float* sine, int64_t n, float sign) {
  HWY_DYNAMIC_DISPATCH(RopeRowsF)(x, count, stride, cosine, sine, n, sign);
}
void RopeRows(double* x, int64_t count, int64_t stride, const double* cosine, const double* sine, int64_t n,
              double sign) {
  HWY_DYNAMIC_DISPATCH(RopeRowsD)(x, count, stride, cosine, sine, n, sign);
}
float MaxRow(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(MaxRowF)(x, n); }
double MaxRow(const double* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(MaxRowD)(x, n); }
float ExpRow(float* x, int64_t n, float shift) { return HWY_DYNAMIC_DISPATCH(ExpRowF)(x, n, shift); }
double ExpRow(double* x, int64_t n, double shift) { return HWY_DYNAMIC_DISPATCH(ExpRowD)(x, n, shift); }
void SoftmaxBackRow(const float* p, float* dp, int64_t n, float delta, float scale) {
  HWY_DYNAMIC_DISPATCH(SoftmaxBackRowF)(p, dp, n, delta, scale);
}
void SoftmaxBackRow(const double* p, double* dp, int64_t n, double delta, double scale) {
  HWY_DYNAMIC_DISPATCH(SoftmaxBackRowD)(p, dp, n, delta, scale);
}
float DotRow(const float* a, const float* b, int64_t n) { return HWY_DYNAMIC_DISPATCH(DotRowF)(a, b, n); }
double DotRow(const double* a, const double* b, int64_t n) { return HWY_DYNAMIC_DISPATCH(DotRowD)(a, b, n); }
void AddRow(const float* a, const float* b, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(AddRowF)(a, b, n, y); }
void AddRow(const double* a, const double* b, int64_t n, double* y) { HWY_DYNAMIC_DISPATCH(AddRowD)(a, b, n, y); }
void ScaleRow(float* y, int64_t n, float factor) { HWY_DYNAMIC_DISPATCH(ScaleRowF)(y, n, factor); }
void ScaleRow(double* y, int64_t n, double factor) { HWY_DYNAMIC_DISPATCH(ScaleRowD)(y, n, factor); }
void ShiftRow(float* y, int64_t n, float summand) { HWY_DYNAMIC_DISPATCH(ShiftRowF)(y, n, summand); }
void ShiftRow(double* y, int64_t n, double summand) { HWY_DYNAMIC_DISPATCH(ShiftRowD)(y, n, summand); }
double SumRow(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumRowF)(x, n); }
double SumRow(const double* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumRowD)(x, n); }
void AxpyRow(const float* x, int64_t n, float factor, float* y) { HWY_DYNAMIC_DISPATCH(AxpyRowF)(x, n, factor, y); }
void AxpyRow(const double* x, int64_t n, double factor, double* y) { HWY_DYNAMIC_DISPATCH(AxpyRowD)(x, n, factor, y); }
double SumOfSquaresRow(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumOfSquaresRowF)(x, n); }
double SumOfSquaresRow(const double* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumOfSquaresRowD)(x, n); }
float MaxAbsRow(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(MaxAbsRowF)(x, n); }
double MaxAbsRow(const double* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(MaxAbsRowD)(x, n); }
void ToFloat(const BFloat16* from, int64_t n, float* to) { HWY_DYNAMIC_DISPATCH(ToFloatN)(from, n, to); }
void FromFloat(const float* from, int64_t n, BFloat16* to) { HWY_DYNAMIC_DISPATCH(FromFloatN)(from, n, to); }
void StochasticRoundRow(const float* from, int64_t n, uint32_t key0, uint32_t key1, uint64_t first_element,
                        BFloat16* to) {
  HWY_DYNAMIC_DISPATCH(StochasticRoundN)(from, n, key0, key1, first_element, to);
}
std::string DispatchTarget() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }
std::vector<std::string> RunnableTargets() {
  std::vector<std::string> names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) names.emplace_back(hwy::TargetName(target));
  return names;
}

}  // namespace shoal::cpu
#endif  // HWY_ONCE
