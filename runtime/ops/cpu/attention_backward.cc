// Backward of variable-length causal attention: FlashAttention-2 (arXiv 2307.08691, Algorithm 2) on tiles.
//
// dK and dV of a block of keys are summed over (query head of the group, block of queries), dQ of a block of queries
// over blocks of keys, each in ascending order. Two schedules keep that order, and so give the same bits: with enough
// (sequence, key head) pairs one task does all of a pair with five products per tile; with too few, one pass over
// blocks of keys and one over blocks of queries do seven in parallel.
#include <cmath>

#include "runtime/ops/cpu/attention_tiles.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::AttentionTask;
using cpu::HeadView;
using cpu::kKeyBlock;
using cpu::kQueryBlock;
using cpu::ScratchSlot;

template <class T>
struct Problem {
  using A = Arithmetic<T>;
  const Tensor &dout, &q, &k, &v, &dq, &dk, &dv;
  const A* lse;    // [H, T]
  const A* delta;  // [H, T]: rows of dout . out
  int64_t tokens, heads, group, size;
  A scale;
};

// P and dS of one tile, in scratch.
template <class T>
struct Tile {
  using A = Arithmetic<T>;
  A* p = cpu::Scratch<A>(ScratchSlot::kTile0, kQueryBlock* kKeyBlock);
  A* ds = cpu::Scratch<A>(ScratchSlot::kTile1, kQueryBlock* kKeyBlock);
  cpu::Panel<T> q, dout;
  int64_t rows = 0, keys = 0;

  void Compute(const Problem<T>& op, int64_t begin, int64_t head, int64_t first, int64_t block_rows, int64_t first_key,
               const cpu::Panel<T>& k, const cpu::Panel<T>& v) {
    const int64_t c = op.size;
    rows = block_rows;
    keys = cpu::KeysSeen(first_key, first + rows);
    q = cpu::PanelOf(cpu::HeadOf<T>(op.q, head), begin + first, rows, c, ScratchSlot::kTile2);
    dout = cpu::PanelOf(cpu::HeadOf<T>(op.dout, head), begin + first, rows, c, ScratchSlot::kTile3);
    cpu::GemmScaled(
        {.m = rows, .n = keys, .k = c, .transpose_b = Transpose::kYes, .lda = q.stride, .ldb = k.stride, .ldc = keys},
        op.scale, q.data, k.data, p);
    cpu::TileGemm(rows, keys, c, dout.data, dout.stride, Transpose::kNo, v.data, v.stride, Transpose::kYes,
                  Accumulate::kOverwrite, ds, keys);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t seen = std::clamp<int64_t>(first + r + 1 - first_key, 0, keys);
      const int64_t at = head * op.tokens + begin + first + r;
      A* p_row = p + r * keys;
      A* ds_row = ds + r * keys;
      cpu::ExpRow(p_row, seen, op.lse[at]);
      cpu::SoftmaxBackRow(p_row, ds_row, seen, op.delta[at], op.scale);
      std::fill(p_row + seen, p_row + keys, A(0));
      std::fill(ds_row + seen, ds_row + keys, A(0));
    }
  }
};

// Rows of `from` into rows of a head.
template <class T>
void StoreRows(const Arithmetic<T>* from, int64_t rows, int64_t c, const HeadView<T>& to, int64_t first) {
  for (int64_t r = 0; r < rows; ++r) {
    if constexpr (std::is_same_v<T, BFloat16>)
      cpu::FromFloat(from + r * c, c, to.Row(first + r));
    else
      std::copy_n(from + r * c, c, to.Row(first + r));
  }
}

// dK, dV of the block of keys at first_key; adds the block's part of dQ to dq_sum [group][length, C] when given.
template <class T>
void KeyBlock(const Problem<T>& op, int64_t begin, int64_t length, int64_t key_head, int64_t first_key,
              Arithmetic<T>* dq_sum) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, most = std::min(kKeyBlock, length - first_key);
  const auto k = cpu::PanelOf(cpu::HeadOf<T>(op.k, key_head), begin + first_key, most, c, ScratchSlot::kTile4);
  const auto v = cpu::PanelOf(cpu::HeadOf<T>(op.v, key_head), begin + first_key, most, c, ScratchSlot::kTile5);
  A* dk = cpu::Scratch<A>(ScratchSlot::kTile6, 2 * kKeyBlock * c);
  A* dv = dk + kKeyBlock * c;
  std::fill_n(dk, 2 * kKeyBlock * c, A(0));
  Tile<T> tile;
  for (int64_t h = 0; h < op.group; ++h) {
    for (int64_t first = first_key / kQueryBlock * kQueryBlock; first < length; first += kQueryBlock) {
      tile.Compute(op, begin, key_head * op.group + h, first, std::min(kQueryBlock, length - first), first_key, k, v);
      cpu::TileGemm(tile.keys, c, tile.rows, tile.p, tile.keys, Transpose::kYes, tile.dout.data, tile.dout.stride,
                    Transpose::kNo, Accumulate::kAdd, dv, c);
      cpu::TileGemm(tile.keys, c, tile.rows, tile.ds, tile.keys, Transpose::kYes, tile.q.data, tile.q.stride,
                    Transpose::kNo, Accumulate::kAdd, dk, c);
      if (dq_sum == nullptr) continue;
      cpu::TileGemm(tile.rows, c, tile.keys, tile.ds, tile.keys, Transpose::kNo, k.data, k.stride, Transpose::kNo,
                    first_key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd, dq_sum + (h * length + first) * c, c);
    }
  }
  StoreRows<T>(dk, most, c, cpu::HeadOf<T>(op.dk, key_head), begin + first_key);
  StoreRows<T>(dv, most, c, cpu::HeadOf<T>(op.dv, key_head), begin + first_key);
}

// All of one (sequence, key head).
template <class T>
void WholePair(const Problem<T>& op, const AttentionTask& task, Arithmetic<T>* dq_sum) {
  for (int64_t first_key = 0; first_key < task.length; first_key += kKeyBlock) {
    KeyBlock<T>(op, task.begin, task.length, task.head, first_key, dq_sum);
  }
  for (int64_t h = 0; h < op.group; ++h) {
    StoreRows<T>(dq_sum + h * task.length * op.size, task.length, op.size,
                 cpu::HeadOf<T>(op.dq, task.head * op.group + h), task.begin);
  }
}

// dQ of one block of queries, recomputing its tiles.
template <class T>
void QueryBlock(const Problem<T>& op, const AttentionTask& task) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, key_head = task.head / op.group;
  A* dq = cpu::Scratch<A>(ScratchSlot::kTile6, kQueryBlock * c);
  Tile<T> tile;
  for (int64_t first_key = 0; first_key < task.first + task.rows; first_key += kKeyBlock) {
    const int64_t keys = cpu::KeysSeen(first_key, task.first + task.rows);
    const auto k = cpu::PanelOf(cpu::HeadOf<T>(op.k, key_head), task.begin + first_key, keys, c, ScratchSlot::kTile4);
    const auto v = cpu::PanelOf(cpu::HeadOf<T>(op.v, key_head), task.begin + first_key, keys, c, ScratchSlot::kTile5);
    tile.Compute(op, task.begin, task.head, task.first, task.rows, first_key, k, v);
    cpu::TileGemm(tile.rows, c, tile.keys, tile.ds, tile.keys, Transpose::kNo, k.data, k.stride, Transpose::kNo,
                  first_key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd, dq, c);
  }
  StoreRows<T>(dq, task.rows, c, cpu::HeadOf<T>(op.dq, task.head), task.begin + task.first);
}

template <class T>
Tensor RowDots(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& out) {
  using A = Arithmetic<T>;
  const int64_t tokens = out.dim(0), heads = out.dim(1), c = out.dim(2);
  Tensor delta = workspace.Live({heads, tokens}, DTypeOf<A>());
  A* to = delta.data<A>();
  const cpu::RowView left = cpu::RowsOf(dout), right = cpu::RowsOf(out);
  ctx.pool->ParallelFor(tokens, cpu::RowGrain(heads * c), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const A* a = cpu::ReadRow(dout.data<T>() + left.Offset(t * heads + h), c, ScratchSlot::kRow0);
        const A* b = cpu::ReadRow(out.data<T>() + right.Offset(t * heads + h), c, ScratchSlot::kRow1);
        to[h * tokens + t] = cpu::DotRow(a, b, c);
      }
    }
  });
  return delta;
}

template <class T>
void Backward(OpContext& ctx, const Problem<T>& op, absl::Span<const int32_t> cu_seqlens) {
  using A = Arithmetic<T>;
  const int64_t key_heads = op.heads / op.group;
  std::vector<AttentionTask> pairs, key_blocks, query_blocks;
  double all = 0, longest = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t begin = cu_seqlens[s], length = cu_seqlens[s + 1] - begin;
    const double work = static_cast<double>(length) * static_cast<double>(length);
    for (int64_t head = 0; head < key_heads && length > 0; ++head)
      pairs.push_back({begin, length, 0, length, head, work});
    all += work * static_cast<double>(key_heads);
    longest = std::max(longest, work);
  }
  // A pair is a task of its own only where that leaves no thread idle for long: the longest pair alone may take no more
  // than a thread's fair share, and nine products instead of seven are cheaper than any worse balance.
  const double threads = ctx.pool->threads();
  const bool whole = std::ceil(all / longest / threads) * longest * 7 <= all / threads * 9;
  for (const AttentionTask& pair : pairs) {
    if (whole) break;
    for (int64_t first = 0; first < pair.length; first += kKeyBlock) {
      key_blocks.push_back({pair.begin, pair.length, first, 0, pair.head, static_cast<double>(pair.length - first)});
    }
    for (int64_t first = 0; first < pair.length; first += kQueryBlock) {
      for (int64_t h = 0; h < op.group; ++h) {
        query_blocks.push_back({pair.begin, pair.length, first, std::min(kQueryBlock, pair.length - first),
                                pair.head * op.group + h, static_cast<double>(first)});
      }
    }
  }
  cpu::LongestFirst(pairs);
  cpu::LongestFirst(key_blocks);
  cpu::LongestFirst(query_blocks);
  if (whole) {
    ctx.pool->Run(static_cast<int64_t>(pairs.size()), [&](int64_t i) {
      WholePair<T>(op, pairs[i], cpu::Scratch<A>(ScratchSlot::kRow2, op.group * pairs[i].length * op.size));
    });
    return;
  }
  ctx.pool->Run(static_cast<int64_t>(key_blocks.size()), [&](int64_t i) {
    KeyBlock<T>(op, key_blocks[i].begin, key_blocks[i].length, key_blocks[i].head, key_blocks[i].first, nullptr);
  });
  ctx.pool->Run(static_cast<int64_t>(query_blocks.size()), [&](int64_t i) { QueryBlock<T>(op, query_blocks[i]); });
}

}  // namespace

void AttentionVarlenBwd(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, absl::Span<const int32_t> cu_seqlens,
                        const Tensor& dq, const Tensor& dk, const Tensor& dv, AttentionOptions options) {
  CHECK(q.SameShape(dout) && q.SameShape(out) && q.SameShape(dq) && k.SameShape(dk) && v.SameShape(dv))
      << "attention's gradients have the shapes of q " << ShapeString(q.shape()) << " and k " << ShapeString(k.shape());
  CHECK_GT(options.scale, 0) << "attention's scale is not set";
  const cpu::OpScope scope(ctx, q, 5 * cpu::CausalGemmFlops(cu_seqlens, q.dim(1), q.dim(2)),
                           static_cast<double>(4 * q.bytes() + 4 * k.bytes()));
  if (scope.counted()) {
    workspace.Live({q.dim(1), q.dim(0)}, q.dtype() == DType::kF64 ? DType::kF64 : DType::kF32);
    return;
  }
  if (q.size() == 0) return;
  cpu::ByFloatType(q.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const Tensor delta = RowDots<T>(ctx, workspace, dout, out);
    Backward<T>(ctx,
                {dout, q, k, v, dq, dk, dv, lse.data<A>(), delta.data<A>(), q.dim(0), q.dim(1), q.dim(1) / k.dim(1),
                 q.dim(2), static_cast<A>(options.scale)},
                cu_seqlens);
  });
}

}  // namespace shoal::ops
