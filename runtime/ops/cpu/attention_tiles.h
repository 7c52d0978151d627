// What attention's forward and backward share: how sequences are cut into tiles, and how operands are reached.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/cpu/gemm.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/tensor/tensor.h"

namespace shoal::cpu {

// Rows of queries and of keys in a tile: scores of a tile, in and out of the exponential, stay in the second-level
// cache.
inline constexpr int64_t kQueryBlock = 128;
inline constexpr int64_t kKeyBlock = 256;

// One head of one operand: row t (a token of the packed batch) starts at data + t * stride.
template <class T>
struct HeadView {
  T* data = nullptr;
  int64_t stride = 0;
  T* Row(int64_t t) const { return data + t * stride; }
};
template <class T>
HeadView<T> HeadOf(const Tensor& x, int64_t head) {
  return {x.data<T>() + head * x.stride(1), x.stride(0)};
}

// Rows of a head as a matrix that a GEMM reads: in place, or widened into scratch.
template <class T>
struct Panel {
  const Arithmetic<T>* data = nullptr;
  int64_t stride = 0;
};
template <class T>
Panel<T> PanelOf(const HeadView<T>& head, int64_t first, int64_t rows, int64_t columns, ScratchSlot slot) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    float* wide = Scratch<float>(slot, rows * columns);
    for (int64_t r = 0; r < rows; ++r) ToFloat(head.Row(first + r), columns, wide + r * columns);
    return {wide, columns};
  } else {
    (void)columns, (void)slot;
    return {head.Row(first), head.stride};
  }
}

// c[m, n] (=|+=) a b with the given transposes, by the calling thread.
template <class A>
void TileGemm(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, ops::Transpose ta, const A* b, int64_t ldb,
              ops::Transpose tb, ops::Accumulate accumulate, A* c, int64_t ldc) {
  Gemm({.m = m, .n = n, .k = k, .transpose_a = ta, .transpose_b = tb, .lda = lda, .ldb = ldb, .ldc = ldc}, a, b,
       accumulate, c);
}

// A block of queries of one sequence and head; `first`, `rows` in tokens of the packed batch.
struct AttentionTask {
  int64_t begin = 0;  // of the sequence
  int64_t length = 0;
  int64_t first = 0;  // of the block, from the sequence's begin
  int64_t rows = 0;
  int64_t head = 0;
  double work = 0;
};

// Keys of block `first_key` that some query before `query_end` sees.
inline int64_t KeysSeen(int64_t first_key, int64_t query_end) { return std::min(kKeyBlock, query_end - first_key); }

// The longest tasks first, so that the last ones to run are short.
inline void LongestFirst(std::vector<AttentionTask>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) { return a.work > b.work; });
}

// 2 M N K of one causal GEMM over all sequences: scores i >= j only.
inline double CausalGemmFlops(absl::Span<const int32_t> cu_seqlens, int64_t heads, int64_t head_size) {
  double pairs = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const double n = cu_seqlens[s + 1] - cu_seqlens[s];
    pairs += n * (n + 1) / 2;
  }
  return 2.0 * pairs * static_cast<double>(heads) * static_cast<double>(head_size);
}

}  // namespace shoal::cpu
