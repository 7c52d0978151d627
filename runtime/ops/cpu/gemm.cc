#include "runtime/ops/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/openblas_adapter.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;
using ops::Transpose;

// row += x p. Both are the calling thread's own; ThreadSanitizer looking on would take most of its builds' test time.
template <class T>
__attribute__((no_sanitize("thread"))) void AddScaled(T x, const T* p, int64_t n, T* row) {
  for (int64_t i = 0; i < n; ++i) row[i] += x * p[i];
}

// Blocked loops with k innermost over packed panels: f64, tiny shapes, and where no library is called.
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
        AddScaled(x, &panel[k * kBlock], nb, row.data());
      }
      T* out = c + m * s.ldc + n0;
      for (int64_t n = 0; n < nb; ++n) out[n] = alpha * row[n] + (accumulate == Accumulate::kAdd ? out[n] : T(0));
    }
  }
}

constexpr int64_t kTiny = 8 * 8 * 8;

void GemmAlpha(const GemmShape& s, float alpha, const float* a, const float* b, Accumulate accumulate, float* c) {
  if (s.m == 0 || s.n == 0) return;
  const float beta = accumulate == Accumulate::kAdd ? 1.0f : 0.0f;
  if (s.m * s.n * s.k > kTiny) {
    const bool done = PrefersOpenBlas() ? OpenBlasSgemm(s, alpha, a, b, beta, c) : OneDnnSgemm(s, alpha, a, b, beta, c);
    if (done) return;
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

// Cuts C into a grid of tiles and calls fn(tile, first row, first column) for each, over the pool. The kernels copy a
// tile's operands into their own order, so large square tiles waste least; more tiles serve more threads. Tiles are the
// same for every number of threads, so that a library's choice of kernel for a tile, and with it the order of its sums,
// is too; where that order does not follow from tiles (`any_tiles`), one thread has no use for small ones.
template <class F>
void ForTiles(ThreadPool& pool, const GemmShape& s, bool any_tiles, F fn) {
  constexpr double kSmallest = 8e6, kUsual = 512e6;  // FLOPs: what waking a thread costs; some milliseconds
  constexpr int64_t kMany = 64, kEdge = 64;
  const int64_t few = any_tiles && pool.threads() == 1 ? 1 : 4;
  const double flops = 2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
  int64_t tiles = 1;
  while (tiles < kMany && static_cast<double>(tiles) * (tiles < few ? kSmallest : kUsual) < flops) tiles *= 2;
  // Rows and columns of the grid: the pair that copies least per product.
  int64_t grid_m = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t gm = 1; gm <= tiles; gm *= 2) {
    const double copied =
        static_cast<double>(gm) / static_cast<double>(s.m) + static_cast<double>(tiles / gm) / static_cast<double>(s.n);
    if (copied < least) least = copied, grid_m = gm;
  }
  const auto edges = [](int64_t extent, int64_t pieces) {
    pieces = std::min(pieces, (extent + kEdge - 1) / kEdge);
    std::vector<int64_t> at(static_cast<size_t>(pieces) + 1, extent);
    for (int64_t i = 0; i < pieces; ++i)
      at[static_cast<size_t>(i)] = std::min(extent, (extent * i / pieces + kEdge / 2) / kEdge * kEdge);
    return at;
  };
  const auto rows = edges(s.m, grid_m), columns = edges(s.n, tiles / grid_m);
  const auto across = static_cast<int64_t>(columns.size()) - 1;
  pool.Run((static_cast<int64_t>(rows.size()) - 1) * across, [&](int64_t i) {
    const auto r = static_cast<size_t>(i / across), c = static_cast<size_t>(i % across);
    GemmShape tile = s;
    tile.m = rows[r + 1] - rows[r];
    tile.n = columns[c + 1] - columns[c];
    if (tile.m > 0 && tile.n > 0) fn(tile, rows[r], columns[c]);
  });
}

int64_t OffsetA(const GemmShape& s, int64_t row) { return s.transpose_a == Transpose::kYes ? row : row * s.lda; }
int64_t OffsetB(const GemmShape& s, int64_t column) {
  return s.transpose_b == Transpose::kYes ? column * s.ldb : column;
}

}  // namespace

template <class T>
void ParallelGemm(ThreadPool& pool, const GemmShape& s, const T* a, const T* b, Accumulate accumulate, T* c) {
  const bool any_tiles = std::is_same_v<T, float> && !PrefersOpenBlas() && OneDnnUsesAvx512();
  ForTiles(pool, s, any_tiles, [&](const GemmShape& tile, int64_t row, int64_t column) {
    Gemm(tile, a + OffsetA(s, row), b + OffsetB(s, column), accumulate, c + row * s.ldc + column);
  });
}

bool ParallelSgemm(ThreadPool& pool, SgemmFn library, const GemmShape& s, const float* a, const float* b, float* c) {
  std::atomic<bool> all{true};
  const bool any_tiles = library == OneDnnSgemm && OneDnnUsesAvx512();
  ForTiles(pool, s, any_tiles, [&](const GemmShape& tile, int64_t row, int64_t column) {
    if (!library(tile, 1, a + OffsetA(s, row), b + OffsetB(s, column), 0, c + row * s.ldc + column)) all = false;
  });
  return all;
}

bool ParallelGemmBf16(ThreadPool& pool, const GemmShape& s, const BFloat16* a, const BFloat16* b, Accumulate accumulate,
                      void* c, DType c_type) {
  if (s.m == 0 || s.n == 0 || s.k == 0) return false;  // the plain path knows what an empty sum is
  std::atomic<bool> all{true};
  ForTiles(pool, s, /*any_tiles=*/false, [&](const GemmShape& tile, int64_t row, int64_t column) {
    char* to = static_cast<char*>(c) + (row * s.ldc + column) * DTypeBytes(c_type);
    if (!OneDnnBf16Gemm(tile, a + OffsetA(s, row), b + OffsetB(s, column), accumulate, to, c_type)) all = false;
  });
  return all;
}

template void ParallelGemm<float>(ThreadPool&, const GemmShape&, const float*, const float*, Accumulate, float*);
template void ParallelGemm<double>(ThreadPool&, const GemmShape&, const double*, const double*, Accumulate, double*);

}  // namespace shoal::cpu
