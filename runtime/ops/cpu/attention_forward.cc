// Forward of variable-length causal attention: FlashAttention-2 (arXiv 2307.08691, Algorithm 1) on tiles.
#include <cmath>
#include <limits>

#include "runtime/ops/cpu/attention_tiles.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::AttentionTask;
using cpu::ScratchSlot;

template <class T>
struct Operands {
  cpu::HeadView<T> q, k, v, out;
  Arithmetic<T>* lse = nullptr;  // of this head, by token
  int64_t size = 0;              // of a head
  Arithmetic<T> scale = 0;
};

// One block of queries against all keys that it sees.
template <class T>
void ForwardBlock(const AttentionTask& task, const Operands<T>& op) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, rows = task.rows;
  const auto q = cpu::PanelOf(op.q, task.begin + task.first, rows, c, ScratchSlot::kTile0);
  A* scores = cpu::Scratch<A>(ScratchSlot::kTile3, cpu::kQueryBlock * cpu::kKeyBlock);
  A* sum_out = cpu::Scratch<A>(ScratchSlot::kTile4, cpu::kQueryBlock * c);
  A maximum[cpu::kQueryBlock], total[cpu::kQueryBlock];
  std::fill_n(maximum, rows, -std::numeric_limits<A>::infinity());
  std::fill_n(total, rows, A(0));

  const int64_t query_end = task.first + rows;
  for (int64_t first_key = 0; first_key < query_end; first_key += cpu::kKeyBlock) {
    const int64_t keys = cpu::KeysSeen(first_key, query_end);
    const auto k = cpu::PanelOf(op.k, task.begin + first_key, keys, c, ScratchSlot::kTile1);
    const auto v = cpu::PanelOf(op.v, task.begin + first_key, keys, c, ScratchSlot::kTile2);
    cpu::GemmScaled(
        {.m = rows, .n = keys, .k = c, .transpose_b = Transpose::kYes, .lda = q.stride, .ldb = k.stride, .ldc = keys},
        op.scale, q.data, k.data, scores);
    for (int64_t r = 0; r < rows; ++r) {
      A* row = scores + r * keys;
      const int64_t seen = std::clamp<int64_t>(task.first + r + 1 - first_key, 0, keys);
      const A highest = std::max(maximum[r], cpu::MaxRow(row, seen));
      if (seen > 0) {
        const A kept = std::exp(maximum[r] - highest);  // 0 at the first block
        total[r] = total[r] * kept + cpu::ExpRow(row, seen, highest);
        if (first_key > 0 && kept != A(1)) cpu::ScaleRow(sum_out + r * c, c, kept);
        maximum[r] = highest;
      }
      std::fill(row + seen, row + keys, A(0));
    }
    cpu::TileGemm(rows, c, keys, scores, keys, Transpose::kNo, v.data, v.stride, Transpose::kNo,
                  first_key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd, sum_out, c);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = task.begin + task.first + r;
    T* to = op.out.Row(token);
    A* result = sum_out + r * c;
    cpu::ScaleRow(result, c, A(1) / total[r]);
    if constexpr (std::is_same_v<T, A>)
      std::copy_n(result, c, to);
    else
      cpu::FromFloat(result, c, to);
    op.lse[token] = maximum[r] + std::log(total[r]);
  }
}

template <class T>
void Forward(OpContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, absl::Span<const int32_t> cu_seqlens,
             const Tensor& out, const Tensor& lse, float scale) {
  const int64_t heads = q.dim(1), group = heads / k.dim(1), tokens = q.dim(0);
  std::vector<AttentionTask> tasks;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t begin = cu_seqlens[s], length = cu_seqlens[s + 1] - begin;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t first = 0; first < length; first += cpu::kQueryBlock) {
        const int64_t rows = std::min(cpu::kQueryBlock, length - first);
        tasks.push_back(
            {begin, length, first, rows, head, static_cast<double>(rows) * static_cast<double>(first + rows)});
      }
    }
  }
  cpu::LongestFirst(tasks);
  ctx.pool->Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const int64_t head = tasks[i].head;
    ForwardBlock<T>(tasks[i], {cpu::HeadOf<T>(q, head), cpu::HeadOf<T>(k, head / group),
                               cpu::HeadOf<T>(v, head / group), cpu::HeadOf<T>(out, head),
                               lse.data<Arithmetic<T>>() + head * tokens, q.dim(2), static_cast<Arithmetic<T>>(scale)});
  });
}

}  // namespace

void AttentionVarlenFwd(OpContext& ctx, Arena&, const Tensor& q, const Tensor& k, const Tensor& v,
                        absl::Span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse,
                        AttentionOptions options) {
  CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && out.rank() == 3) << "attention takes [T, H, C]";
  CHECK(q.SameShape(out) && k.SameShape(v) && q.dim(2) == k.dim(2) && q.dim(1) % k.dim(1) == 0)
      << "attention of q " << ShapeString(q.shape()) << ", k " << ShapeString(k.shape()) << ", v "
      << ShapeString(v.shape());
  CHECK_GT(options.scale, 0) << "attention's scale is not set";
  const cpu::OpScope scope(ctx, out, 2 * cpu::CausalGemmFlops(cu_seqlens, q.dim(1), q.dim(2)),
                           static_cast<double>(2 * q.bytes() + 2 * k.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(q.dtype(),
                   [&](auto type) { Forward<decltype(type)>(ctx, q, k, v, cu_seqlens, out, lse, options.scale); });
}

}  // namespace shoal::ops
