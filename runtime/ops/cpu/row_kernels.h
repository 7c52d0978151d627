// The vectorised inner loops of everything that is not a GEMM, on one row (or one flat run) of floats or doubles at a
// time. Compiled once per dispatch target (SSE4, AVX2, AVX-512) by Highway's foreach_target and picked at run time.
// Sums run in 16 lanes that are added in a fixed order, so a row's result does not depend on the target's vector width
// beyond fused multiply-adds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor/dtype.h"

namespace shoal::cpu {

// `stats` = (mean, rstd). y may alias x.
void LayerNormRow(const float* x, const float* weight, const float* bias, int64_t n, float epsilon, float* y,
                  float* stats);
void LayerNormRow(const double* x, const double* weight, const double* bias, int64_t n, double epsilon, double* y,
                  double* stats);
// dx (+)= ...; add_dx = 1 keeps what dx holds. dweight, dbias (may be null) accumulate. dx may be null or alias dy.
void LayerNormBackRow(const float* dy, const float* x, const float* weight, const float* stats, int64_t n, float add_dx,
                      float* dx, float* dweight, float* dbias);
void LayerNormBackRow(const double* dy, const double* x, const double* weight, const double* stats, int64_t n,
                      double add_dx, double* dx, double* dweight, double* dbias);
void RmsNormRow(const float* x, const float* weight, int64_t n, float epsilon, float* y, float* rstd);
void RmsNormRow(const double* x, const double* weight, int64_t n, double epsilon, double* y, double* rstd);
void RmsNormBackRow(const float* dy, const float* x, const float* weight, float rstd, int64_t n, float add_dx,
                    float* dx, float* dweight);
void RmsNormBackRow(const double* dy, const double* x, const double* weight, double rstd, int64_t n, double add_dx,
                    double* dx, double* dweight);

void GeluRow(const float* x, int64_t n, float* y);
void GeluRow(const double* x, int64_t n, double* y);
void GeluBackRow(const float* dy, const float* x, int64_t n, float* dx);
void GeluBackRow(const double* dy, const double* x, int64_t n, double* dx);
void SwiGluRow(const float* gate, const float* up, int64_t n, float* y);
void SwiGluRow(const double* gate, const double* up, int64_t n, double* y);
void SwiGluBackRow(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup);
void SwiGluBackRow(const double* dy, const double* gate, const double* up, int64_t n, double* dgate, double* dup);

// `count` rows of n, `stride` apart, each rotated by (cos, sin) of n/2 angles: first half with second half; sign -1
// rotates back.
void RopeRows(float* x, int64_t count, int64_t stride, const float* cosine, const float* sine, int64_t n, float sign);
void RopeRows(double* x, int64_t count, int64_t stride, const double* cosine, const double* sine, int64_t n,
              double sign);

// Largest element (-inf when n = 0); x = exp(x - shift), returns the sum; exp(x - shift) * and (dp - delta).
float MaxRow(const float* x, int64_t n);
double MaxRow(const double* x, int64_t n);
float ExpRow(float* x, int64_t n, float shift);
double ExpRow(double* x, int64_t n, double shift);
// ds = scale p (dp - delta) with dp in place.
void SoftmaxBackRow(const float* p, float* dp, int64_t n, float delta, float scale);
void SoftmaxBackRow(const double* p, double* dp, int64_t n, double delta, double scale);
float DotRow(const float* a, const float* b, int64_t n);
double DotRow(const double* a, const double* b, int64_t n);

// Sum of x in f64.
double SumRow(const float* x, int64_t n);
double SumRow(const double* x, int64_t n);

// y = a + b; y = factor y; y += summand; y += factor x.
void AddRow(const float* a, const float* b, int64_t n, float* y);
void AddRow(const double* a, const double* b, int64_t n, double* y);
void ScaleRow(float* y, int64_t n, float factor);
void ScaleRow(double* y, int64_t n, double factor);
void ShiftRow(float* y, int64_t n, float summand);
void ShiftRow(double* y, int64_t n, double summand);
void AxpyRow(const float* x, int64_t n, float factor, float* y);
void AxpyRow(const double* x, int64_t n, double factor, double* y);

// fp64 accumulation in 16 lanes.
double SumOfSquaresRow(const float* x, int64_t n);
double SumOfSquaresRow(const double* x, int64_t n);
float MaxAbsRow(const float* x, int64_t n);
double MaxAbsRow(const double* x, int64_t n);

void ToFloat(const BFloat16* from, int64_t n, float* to);
void FromFloat(const float* from, int64_t n, BFloat16* to);

// Element i rounds by 16 random bits: eight elements share counter (first_element + i) / 8 of Philox4x32-10 with this
// key (runtime/base/rng.h). NaN stays NaN, infinity stays. Whole numbers only: the same bits on every target.
void StochasticRoundRow(const float* from, int64_t n, uint32_t key0, uint32_t key1, uint64_t first_element,
                        BFloat16* to);

// The target that runs here: "AVX3", "AVX2", ...
std::string DispatchTarget();
// All targets that this program was built for and this processor runs, the best first.
std::vector<std::string> RunnableTargets();

}  // namespace shoal::cpu
