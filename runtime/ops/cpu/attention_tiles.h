// What attention's forward and backward share: how sequences are cut into tiles, and how operands are reached.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/cpu/gemm.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"
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

// Which key head a query head reads, and which query heads a key head serves: [Begin, End), of unequal number where the
// heads are a run of a model's.
struct HeadGroups {
  int64_t heads = 0, key_heads = 0, group = 1, first = 0;
  int64_t KeyHead(int64_t head) const { return (first + head) / group; }
  int64_t Begin(int64_t key_head) const { return std::clamp<int64_t>(key_head * group - first, 0, heads); }
  int64_t End(int64_t key_head) const { return Begin(key_head + 1); }
  int64_t Size(int64_t key_head) const { return End(key_head) - Begin(key_head); }
};
// Of operands q_THC, k_TKC and v_TKC, which it checks, and the options with them.
HeadGroups CheckedGroups(const Tensor& q, const Tensor& k, const Tensor& v, const ops::AttentionOptions& options);

// Packed sequences as parts: all queries of a sequence and all its keys.
std::vector<ops::AttentionPart> WholeSequences(absl::Span<const int32_t> cu_seqlens);

// Rows of parts must be rows of q, and of k.
void CheckParts(absl::Span<const ops::AttentionPart> parts, const Tensor& q, const Tensor& k);

// Parts in spans of rows of one side: parts are cut where another one's range of rows begins or ends, so that those of
// a span have the same rows there, and spans have no row in common. Spans are in the order of rows, the parts of one in
// the order given. Parts of which no query sees a key are left out.
enum class PartSide : uint8_t { kQueries, kKeys };
class PartSpans {
 public:
  PartSpans(absl::Span<const ops::AttentionPart> parts, PartSide side);
  PartSpans(const PartSpans&) = delete;
  PartSpans& operator=(const PartSpans&) = delete;
  absl::Span<const ops::AttentionPart> parts() const { return parts_; }  // of all spans
  absl::Span<const absl::Span<const ops::AttentionPart>> spans() const { return spans_; }

 private:
  std::vector<ops::AttentionPart> parts_;
  std::vector<absl::Span<const ops::AttentionPart>> spans_;
};

// Spans of keys with the same number have queries in common, directly or by way of others. Numbers are below the number
// of spans; parts must be cut on both sides.
std::vector<size_t> ClustersByQueries(const PartSpans& key_spans);

// Keys that the last query before row `query_end` of the part would see if the part's went on for ever; negative where
// it stands before the first.
inline int64_t KeysBefore(const ops::AttentionPart& part, int64_t query_end) {
  return part.q_position - part.k_position + query_end;
}
// Keys from `first_key` of the part on, no more than a block, that some query before row `query_end` of it sees.
inline int64_t KeysSeen(const ops::AttentionPart& part, int64_t first_key, int64_t query_end) {
  return std::max<int64_t>(0, std::min({kKeyBlock, part.k_rows - first_key, KeysBefore(part, query_end) - first_key}));
}
// Where the first block of queries begins of which one sees a key at `first_key` or after; may lie past the part's end.
inline int64_t FirstQueryBlock(const ops::AttentionPart& part, int64_t first_key) {
  return std::max<int64_t>(0, first_key - KeysBefore(part, 0)) / kQueryBlock * kQueryBlock;
}

// What one thread does at a time, for one head: a block of rows of a span, from `first` on, against the other side of
// the span's parts.
struct AttentionTask {
  absl::Span<const ops::AttentionPart> parts;
  int64_t first = 0;
  int64_t rows = 0;
  int64_t head = 0;
  double work = 0;
};
// The blocks of queries of all spans and heads, with the number of scores in their tiles as work, the longest first so
// that the last ones to run are short. Blocks that see no key are left out.
std::vector<AttentionTask> QueryTasks(const PartSpans& spans, int64_t heads);
template <class Task>
void LongestFirst(std::vector<Task>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.work > b.work; });
}

// 2 M N K of one GEMM of all parts, for the pairs only of a query and a key that it sees.
double CausalGemmFlops(absl::Span<const ops::AttentionPart> parts, int64_t heads, int64_t head_size);

}  // namespace shoal::cpu
