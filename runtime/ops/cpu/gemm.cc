#include "runtime/ops/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "runtime/ops/cpu/onednn_adapter.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;
using ops::Transpose;

// Blocked loops with k innermost over packed panels: f64, ThreadSanitizer builds, and tiny shapes.
template <class T>
void LoopGemm(const GemmShape& s, T alpha, const T* a, const T* b, Accumulate accumulate, T* c) {
  constexpr int64_t kBlock = 64;
  std::vector<T> panel(kBlock * s.k), row(kBlock);
  for (int64_t n0 = 0; n0 < s.n; n0 += kBlock) {
    const int64_t nb = std::min(kBlock, s.n - n0);
    for (int64_t k = 0; k < s.k; ++k) {
      for (int64_t n = 0; n < nb; ++n) {
        panel[k * kBlock + n] = s.transpose_b == Transpose::kYes ? b[(n0 + n) * s.ldb + k] : b[k * s.ldb + n0 + n];
      }
    }
    for (int64_t m = 0; m < s.m; ++m) {
      std::fill(row.begin(), row.end(), T(0));
      for (int64_t k = 0; k < s.k; ++k) {
        const T x = s.transpose_a == Transpose::kYes ? a[k * s.lda + m] : a[m * s.lda + k];
        const T* p = &panel[k * kBlock];
        for (int64_t n = 0; n < nb; ++n) row[n] += x * p[n];
      }
      T* out = c + m * s.ldc + n0;
      for (int64_t n = 0; n < nb; ++n) out[n] = alpha * row[n] + (accumulate == Accumulate::kAdd ? out[n] : T(0));
    }
  }
}

constexpr int64_t kTiny = 8 * 8 * 8;

void GemmAlpha(const GemmShape& s, float alpha, const float* a, const float* b, Accumulate accumulate, float* c) {
  if (s.m == 0 || s.n == 0) return;
  if (s.m * s.n * s.k > kTiny && OneDnnSgemm(s, alpha, a, b, accumulate == Accumulate::kAdd ? 1.0f : 0.0f, c)) {
    return;
  }
  LoopGemm(s, alpha, a, b, accumulate, c);
}

void GemmAlpha(const GemmShape& s, double alpha, const double* a, const double* b, Accumulate accumulate, double* c) {
  LoopGemm(s, alpha, a, b, accumulate, c);
}

}  // namespace

void Gemm(const GemmShape& s, const float* a, const float* b, Accumulate accumulate, float* c) {
  GemmAlpha(s, 1.0f, a, b, accumulate, c);
}
void Gemm(const GemmShape& s, const double* a, const double* b, Accumulate accumulate, double* c) {
  GemmAlpha(s, 1.0, a, b, accumulate, c);
}
void GemmScaled(const GemmShape& s, float alpha, const float* a, const float* b, float* c) {
  GemmAlpha(s, alpha, a, b, Accumulate::kOverwrite, c);
}
void GemmScaled(const GemmShape& s, double alpha, const double* a, const double* b, double* c) {
  GemmAlpha(s, alpha, a, b, Accumulate::kOverwrite, c);
}

namespace {

// Cuts C into rows or columns and calls fn(slice, first row, first column) for each, over the pool. A slice costs at
// least what waking a thread does. Slices are the same for every number of threads, so that oneDNN's choice of kernel
// for a slice, and with it the order of its sums, is too.
template <class F>
void ForSlices(ThreadPool& pool, const GemmShape& s, F fn) {
  constexpr int64_t kSliceFlops = 4 << 20;
  const bool rows = s.m >= s.n;
  const int64_t extent = rows ? s.m : s.n;
  constexpr int64_t kTile = 64;
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(8, s.m * s.n / 8 * s.k / (kSliceFlops / 8)));
  const int64_t pieces = std::min(most, (extent + kTile - 1) / kTile);
  const auto border = [&](int64_t i) {
    return i == pieces ? extent : std::min(extent, (extent * i / pieces + kTile / 2) / kTile * kTile);
  };
  pool.Run(pieces, [&](int64_t i) {
    const int64_t begin = border(i), end = border(i + 1);
    if (begin >= end) return;
    GemmShape slice = s;
    (rows ? slice.m : slice.n) = end - begin;
    fn(slice, rows ? begin : 0, rows ? 0 : begin);
  });
}

int64_t OffsetA(const GemmShape& s, int64_t row) { return s.transpose_a == Transpose::kYes ? row : row * s.lda; }
int64_t OffsetB(const GemmShape& s, int64_t column) {
  return s.transpose_b == Transpose::kYes ? column * s.ldb : column;
}

}  // namespace

template <class T>
void ParallelGemm(ThreadPool& pool, const GemmShape& s, const T* a, const T* b, Accumulate accumulate, T* c) {
  ForSlices(pool, s, [&](const GemmShape& slice, int64_t row, int64_t column) {
    Gemm(slice, a + OffsetA(s, row), b + OffsetB(s, column), accumulate, c + row * s.ldc + column);
  });
}

bool ParallelGemmBf16(ThreadPool& pool, const GemmShape& s, const BFloat16* a, const BFloat16* b, Accumulate accumulate,
                      void* c, DType c_type) {
  if (s.m == 0 || s.n == 0 || s.k == 0) return false;  // the plain path knows what an empty sum is
  std::atomic<bool> all{true};
  ForSlices(pool, s, [&](const GemmShape& slice, int64_t row, int64_t column) {
    char* to = static_cast<char*>(c) + (row * s.ldc + column) * DTypeBytes(c_type);
    if (!OneDnnBf16Gemm(slice, a + OffsetA(s, row), b + OffsetB(s, column), accumulate, to, c_type)) all = false;
  });
  return all;
}

template void ParallelGemm<float>(ThreadPool&, const GemmShape&, const float*, const float*, Accumulate, float*);
template void ParallelGemm<double>(ThreadPool&, const GemmShape&, const double*, const double*, Accumulate, double*);

}  // namespace shoal::cpu
