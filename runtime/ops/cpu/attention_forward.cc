// Forward of causal attention: FlashAttention-2 (arXiv 2307.08691, Algorithm 1) on tiles. Packed sequences are parts
// that hold all keys of their queries.
#include <cmath>
#include <limits>

#include "runtime/ops/cpu/attention_tiles.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::AttentionTask;
using cpu::HeadGroups;
using cpu::ScratchSlot;

// Whether `out` and `lse` are of the parts alone, or of keys before them too.
enum class Result : uint8_t { kNew, kRunning };

// One head. Out is what `out` holds: T, or its arithmetic type.
template <class T, class Out>
struct Operands {
  cpu::HeadView<T> q, k, v;
  cpu::HeadView<Out> out;
  Arithmetic<T>* lse = nullptr;  // of this head, by token
  int64_t size = 0;              // of a head
  Arithmetic<T> scale = 0;
  Result result = Result::kNew;
};

// Of a block's queries: sum of exp(score - maximum) so far by row, and the same of exp(score - maximum) * value.
template <class A>
struct Sums {
  A maximum[cpu::kQueryBlock], total[cpu::kQueryBlock];
  A* values = nullptr;  // [kQueryBlock, C]; not set before the first tile of a new result
};

template <class T, class Out>
void Begin(const Operands<T, Out>& op, int64_t first_row, int64_t rows, Sums<Arithmetic<T>>& sums) {
  using A = Arithmetic<T>;
  std::fill_n(sums.maximum, rows, -std::numeric_limits<A>::infinity());
  std::fill_n(sums.total, rows, A(0));
  if constexpr (std::is_same_v<Out, A>) {
    if (op.result == Result::kNew) return;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(op.out.Row(first_row + r), op.size, sums.values + r * op.size);
      sums.maximum[r] = op.lse[first_row + r];
      if (std::isfinite(sums.maximum[r])) sums.total[r] = A(1);
    }
  }
}

template <class T, class Out>
void Finish(const Operands<T, Out>& op, int64_t first_row, int64_t rows, const Sums<Arithmetic<T>>& sums) {
  using A = Arithmetic<T>;
  for (int64_t r = 0; r < rows; ++r) {
    if (sums.total[r] == A(0)) continue;  // no key yet
    Out* to = op.out.Row(first_row + r);
    A* result = sums.values + r * op.size;
    cpu::ScaleRow(result, op.size, A(1) / sums.total[r]);
    if constexpr (std::is_same_v<Out, A>)
      std::copy_n(result, op.size, to);
    else
      cpu::FromFloat(result, op.size, to);
    op.lse[first_row + r] = sums.maximum[r] + std::log(sums.total[r]);
  }
}

// One block of queries against all keys of the parts that it sees.
template <class T, class Out>
void ForwardBlock(const AttentionTask& task, const Operands<T, Out>& op) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, rows = task.rows, query_end = task.first + rows;
  const int64_t first_row = task.parts.front().q_begin + task.first;
  const auto q = cpu::PanelOf(op.q, first_row, rows, c, ScratchSlot::kTile0);
  A* scores = cpu::Scratch<A>(ScratchSlot::kTile3, cpu::kQueryBlock * cpu::kKeyBlock);
  Sums<A> sums;
  sums.values = cpu::Scratch<A>(ScratchSlot::kTile4, cpu::kQueryBlock * c);
  Begin(op, first_row, rows, sums);
  bool has_values = op.result == Result::kRunning;
  for (const AttentionPart& part : task.parts) {
    for (int64_t first_key = 0, keys; (keys = cpu::KeysSeen(part, first_key, query_end)) > 0;
         first_key += cpu::kKeyBlock) {
      const auto k = cpu::PanelOf(op.k, part.k_begin + first_key, keys, c, ScratchSlot::kTile1);
      const auto v = cpu::PanelOf(op.v, part.k_begin + first_key, keys, c, ScratchSlot::kTile2);
      cpu::GemmScaled(
          {.m = rows, .n = keys, .k = c, .transpose_b = Transpose::kYes, .lda = q.stride, .ldb = k.stride, .ldc = keys},
          op.scale, q.data, k.data, scores);
      for (int64_t r = 0; r < rows; ++r) {
        A* row = scores + r * keys;
        const int64_t seen = std::clamp<int64_t>(cpu::KeysBefore(part, task.first + r + 1) - first_key, 0, keys);
        const A highest = std::max(sums.maximum[r], cpu::MaxRow(row, seen));
        if (seen > 0) {
          const A kept = std::exp(sums.maximum[r] - highest);  // 0 at a row's first key
          sums.total[r] = sums.total[r] * kept + cpu::ExpRow(row, seen, highest);
          if (has_values && kept != A(1)) cpu::ScaleRow(sums.values + r * c, c, kept);
          sums.maximum[r] = highest;
        }
        std::fill(row + seen, row + keys, A(0));
      }
      cpu::TileGemm(rows, c, keys, scores, keys, Transpose::kNo, v.data, v.stride, Transpose::kNo,
                    has_values ? Accumulate::kAdd : Accumulate::kOverwrite, sums.values, c);
      has_values = true;
    }
  }
  Finish(op, first_row, rows, sums);
}

template <class T, class Out>
void Forward(OpContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, absl::Span<const AttentionPart> parts,
             const Tensor& out, const Tensor& lse, const HeadGroups& groups, float scale, Result result) {
  using A = Arithmetic<T>;
  const cpu::PartSpans spans(parts, cpu::PartSide::kQueries);
  const std::vector<AttentionTask> tasks = cpu::QueryTasks(spans, groups.heads);
  ctx.pool->Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const int64_t head = tasks[i].head, key_head = groups.KeyHead(head);
    ForwardBlock<T, Out>(tasks[i], {cpu::HeadOf<T>(q, head), cpu::HeadOf<T>(k, key_head), cpu::HeadOf<T>(v, key_head),
                                    cpu::HeadOf<Out>(out, head), lse.data<A>() + head * q.dim(0), q.dim(2),
                                    static_cast<A>(scale), result});
  });
}

}  // namespace

void AttentionVarlenFwd(OpContext& ctx, Arena&, const Tensor& q, const Tensor& k, const Tensor& v,
                        absl::Span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse,
                        AttentionOptions options) {
  const HeadGroups groups = cpu::CheckedGroups(q, k, v, options);
  CHECK(q.SameShape(out)) << "attention of q " << ShapeString(q.shape()) << " into " << ShapeString(out.shape());
  const std::vector<AttentionPart> parts = cpu::WholeSequences(cu_seqlens);
  const cpu::OpScope scope(ctx, out, 2 * cpu::CausalGemmFlops(parts, q.dim(1), q.dim(2)),
                           static_cast<double>(2 * q.bytes() + 2 * k.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(q.dtype(), [&](auto type) {
    using T = decltype(type);
    Forward<T, T>(ctx, q, k, v, parts, out, lse, groups, options.scale, Result::kNew);
  });
}

void AttentionPartsFwd(OpContext& ctx, Arena&, const Tensor& q, const Tensor& k, const Tensor& v,
                       absl::Span<const AttentionPart> parts, const Tensor& out, const Tensor& lse,
                       AttentionOptions options) {
  const HeadGroups groups = cpu::CheckedGroups(q, k, v, options);
  CHECK(q.SameShape(out)) << "attention of q " << ShapeString(q.shape()) << " into " << ShapeString(out.shape());
  cpu::CheckParts(parts, q, k);
  const cpu::OpScope scope(ctx, out, 2 * cpu::CausalGemmFlops(parts, q.dim(1), q.dim(2)),
                           static_cast<double>(q.bytes() + 2 * k.bytes() + 2 * out.bytes() + 2 * lse.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(q.dtype(), [&](auto type) {
    using T = decltype(type);
    Forward<T, Arithmetic<T>>(ctx, q, k, v, parts, out, lse, groups, options.scale, Result::kRunning);
  });
}

}  // namespace shoal::ops
