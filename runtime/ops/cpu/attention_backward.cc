// Backward of causal attention: FlashAttention-2 (arXiv 2307.08691, Algorithm 2) on tiles. Packed sequences are parts
// that hold all keys of their queries and all queries of their keys.
//
// dK and dV of a block of keys are summed over (query head of the group, part, block of queries), dQ of a block of
// queries over (part, block of keys), each in ascending order of rows. Two schedules keep that order, and so give the
// same bits: with enough pairs of (parts that have queries or keys in common, key head), a sequence as a rule, one task
// does all of a pair with five products per tile; with too few, one pass over blocks of keys and one over blocks of
// queries do seven in parallel.
#include <numeric>

#include "runtime/ops/cpu/attention_tiles.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::AttentionTask;
using cpu::HeadGroups;
using cpu::HeadView;
using cpu::kKeyBlock;
using cpu::kQueryBlock;
using cpu::PartSide;
using cpu::PartSpans;
using cpu::ScratchSlot;

// Grad is what dq, dk and dv hold: T, or its arithmetic type.
template <class T, class Grad>
struct Problem {
  using A = Arithmetic<T>;
  const Tensor &dout, &q, &k, &v, &dq, &dk, &dv;
  const A* lse;    // [H, T]
  const A* delta;  // [H, T]: rows of dout . out
  int64_t tokens, size;
  HeadGroups groups;
  A scale;
  Accumulate accumulate;
};

// P and dS of one tile, in scratch.
template <class T, class Grad>
struct Tile {
  using A = Arithmetic<T>;
  A* p = cpu::Scratch<A>(ScratchSlot::kTile0, kQueryBlock* kKeyBlock);
  A* ds = cpu::Scratch<A>(ScratchSlot::kTile1, kQueryBlock* kKeyBlock);
  cpu::Panel<T> q, dout;
  int64_t rows = 0, keys = 0;

  // Rows [first, first + block_rows) of the part's queries, and the keys from first_key on that they see: some.
  void Compute(const Problem<T, Grad>& op, const AttentionPart& part, int64_t head, int64_t first, int64_t block_rows,
               int64_t first_key, const cpu::Panel<T>& k, const cpu::Panel<T>& v) {
    const int64_t c = op.size, first_row = part.q_begin + first;
    rows = block_rows;
    keys = cpu::KeysSeen(part, first_key, first + rows);
    q = cpu::PanelOf(cpu::HeadOf<T>(op.q, head), first_row, rows, c, ScratchSlot::kTile2);
    dout = cpu::PanelOf(cpu::HeadOf<T>(op.dout, head), first_row, rows, c, ScratchSlot::kTile3);
    cpu::GemmScaled(
        {.m = rows, .n = keys, .k = c, .transpose_b = Transpose::kYes, .lda = q.stride, .ldb = k.stride, .ldc = keys},
        op.scale, q.data, k.data, p);
    cpu::TileGemm(rows, keys, c, dout.data, dout.stride, Transpose::kNo, v.data, v.stride, Transpose::kYes,
                  Accumulate::kOverwrite, ds, keys);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t seen = std::clamp<int64_t>(cpu::KeysBefore(part, first + r + 1) - first_key, 0, keys);
      const int64_t at = head * op.tokens + first_row + r;
      A* p_row = p + r * keys;
      A* ds_row = ds + r * keys;
      cpu::ExpRow(p_row, seen, op.lse[at]);
      cpu::SoftmaxBackRow(p_row, ds_row, seen, op.delta[at], op.scale);
      std::fill(p_row + seen, p_row + keys, A(0));
      std::fill(ds_row + seen, ds_row + keys, A(0));
    }
  }
};

// Rows of `from` (=|+=) into rows of a head.
template <class Grad>
void StoreRows(const Arithmetic<Grad>* from, int64_t rows, int64_t c, Accumulate accumulate, const HeadView<Grad>& to,
               int64_t first) {
  for (int64_t r = 0; r < rows; ++r) {
    Grad* row = to.Row(first + r);
    if constexpr (std::is_same_v<Grad, BFloat16>) {
      cpu::FromFloat(from + r * c, c, row);
    } else if (accumulate == Accumulate::kAdd) {
      cpu::AddRow(from + r * c, row, c, row);
    } else {
      std::copy_n(from + r * c, c, row);
    }
  }
}

// Where dQ of a tile goes: rows of C, or nowhere.
template <class A>
struct QueryGrads {
  A* data = nullptr;
  int64_t stride = 0;
  Accumulate accumulate = Accumulate::kAdd;
};
// Into dq itself.
template <class T, class Grad>
QueryGrads<Arithmetic<T>> InPlace(const Problem<T, Grad>& op, const AttentionPart& part, int64_t head, int64_t first,
                                  Accumulate accumulate) {
  if constexpr (std::is_same_v<Grad, Arithmetic<T>>) {
    const HeadView<Grad> dq = cpu::HeadOf<Grad>(op.dq, head);
    return {dq.Row(part.q_begin + first), dq.stride, accumulate};
  } else {
    LOG(FATAL) << "gradients are not added to " << DTypeName(op.dq.dtype());
  }
}
template <class T, class Grad>
void AddTo(const QueryGrads<Arithmetic<T>>& to, const Tile<T, Grad>& tile, const cpu::Panel<T>& k, int64_t c) {
  cpu::TileGemm(tile.rows, c, tile.keys, tile.ds, tile.keys, Transpose::kNo, k.data, k.stride, Transpose::kNo,
                to.accumulate, to.data, to.stride);
}

// dK, dV of the block of keys at first_key of parts with the same keys. dQ of its tiles goes to dq_of(part, head, first
// query).
template <class T, class Grad, class F>
void KeyBlock(const Problem<T, Grad>& op, absl::Span<const AttentionPart> parts, int64_t key_head, int64_t first_key,
              F dq_of) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, first_row = parts.front().k_begin + first_key;
  const int64_t most = std::min(kKeyBlock, parts.front().k_rows - first_key);
  const auto k = cpu::PanelOf(cpu::HeadOf<T>(op.k, key_head), first_row, most, c, ScratchSlot::kTile4);
  const auto v = cpu::PanelOf(cpu::HeadOf<T>(op.v, key_head), first_row, most, c, ScratchSlot::kTile5);
  A* dk = cpu::Scratch<A>(ScratchSlot::kTile6, 2 * kKeyBlock * c);
  A* dv = dk + most * c;
  std::fill_n(dk, 2 * most * c, A(0));
  Tile<T, Grad> tile;
  const auto add = [&](const AttentionPart& part, int64_t head, int64_t first) {
    tile.Compute(op, part, head, first, std::min(kQueryBlock, part.q_rows - first), first_key, k, v);
    cpu::TileGemm(tile.keys, c, tile.rows, tile.p, tile.keys, Transpose::kYes, tile.dout.data, tile.dout.stride,
                  Transpose::kNo, Accumulate::kAdd, dv, c);
    cpu::TileGemm(tile.keys, c, tile.rows, tile.ds, tile.keys, Transpose::kYes, tile.q.data, tile.q.stride,
                  Transpose::kNo, Accumulate::kAdd, dk, c);
    const QueryGrads<A> dq = dq_of(part, head, first);
    if (dq.data != nullptr) AddTo(dq, tile, k, c);
  };
  for (int64_t head = op.groups.Begin(key_head); head < op.groups.End(key_head); ++head) {
    for (const AttentionPart& part : parts) {
      for (int64_t first = cpu::FirstQueryBlock(part, first_key); first < part.q_rows; first += kQueryBlock)
        add(part, head, first);
    }
  }
  StoreRows<Grad>(dk, most, c, op.accumulate, cpu::HeadOf<Grad>(op.dk, key_head), first_row);
  StoreRows<Grad>(dv, most, c, op.accumulate, cpu::HeadOf<Grad>(op.dv, key_head), first_row);
}

using KeySpans = std::vector<absl::Span<const AttentionPart>>;

// All of one (cluster of spans of keys, key head).
template <class T, class Grad>
void WholePair(const Problem<T, Grad>& op, const KeySpans& spans, int64_t key_head) {
  const auto each_block = [&](auto dq_of) {
    for (const absl::Span<const AttentionPart> parts : spans) {
      for (int64_t first_key = 0; first_key < parts.front().k_rows; first_key += kKeyBlock)
        KeyBlock(op, parts, key_head, first_key, [&](const AttentionPart& part, int64_t head, int64_t first) {
          return dq_of(part, head, first, first_key);
        });
    }
  };
  // What is not added to is a sequence: one part, of which every query sees the first block of keys.
  const auto into = [&](int64_t first_key) {
    return op.accumulate == Accumulate::kOverwrite && first_key == 0 ? Accumulate::kOverwrite : Accumulate::kAdd;
  };
  if (std::is_same_v<Grad, Arithmetic<T>> || op.accumulate == Accumulate::kAdd) {
    return each_block([&](const AttentionPart& part, int64_t head, int64_t first, int64_t first_key) {
      return InPlace(op, part, head, first, into(first_key));
    });
  }
  const AttentionPart& whole = spans.front().front();
  const int64_t begin = op.groups.Begin(key_head), end = op.groups.End(key_head), c = op.size;
  auto* dq = cpu::Scratch<Arithmetic<T>>(ScratchSlot::kRow2, (end - begin) * whole.q_rows * c);
  each_block([&](const AttentionPart& part, int64_t head, int64_t first, int64_t first_key) {
    return QueryGrads<Arithmetic<T>>{dq + ((head - begin) * part.q_rows + first) * c, c, into(first_key)};
  });
  for (int64_t head = begin; head < end; ++head) {
    StoreRows<Grad>(dq + (head - begin) * whole.q_rows * c, whole.q_rows, c, op.accumulate,
                    cpu::HeadOf<Grad>(op.dq, head), whole.q_begin);
  }
}

// dQ of one block of queries, recomputing its tiles.
template <class T, class Grad>
void QueryBlock(const Problem<T, Grad>& op, const AttentionTask& task) {
  using A = Arithmetic<T>;
  const int64_t c = op.size, key_head = op.groups.KeyHead(task.head);
  const bool in_place = op.accumulate == Accumulate::kAdd;
  QueryGrads<A> dq{cpu::Scratch<A>(ScratchSlot::kTile6, kQueryBlock * c), c, Accumulate::kOverwrite};
  if (in_place) dq = InPlace(op, task.parts.front(), task.head, task.first, Accumulate::kAdd);
  Tile<T, Grad> tile;
  for (const AttentionPart& part : task.parts) {
    for (int64_t first_key = 0, keys; (keys = cpu::KeysSeen(part, first_key, task.first + task.rows)) > 0;
         first_key += kKeyBlock) {
      const int64_t first_row = part.k_begin + first_key;
      const auto k = cpu::PanelOf(cpu::HeadOf<T>(op.k, key_head), first_row, keys, c, ScratchSlot::kTile4);
      const auto v = cpu::PanelOf(cpu::HeadOf<T>(op.v, key_head), first_row, keys, c, ScratchSlot::kTile5);
      tile.Compute(op, part, task.head, task.first, task.rows, first_key, k, v);
      AddTo(dq, tile, k, c);
      dq.accumulate = Accumulate::kAdd;
    }
  }
  if (in_place) return;
  StoreRows<Grad>(dq.data, task.rows, c, op.accumulate, cpu::HeadOf<Grad>(op.dq, task.head),
                  task.parts.front().q_begin + task.first);
}

// Blocks of keys first, then blocks of queries.
template <class T, class Grad>
void ByBlocks(OpContext& ctx, const Problem<T, Grad>& op, const PartSpans& key_spans) {
  std::vector<AttentionTask> key_blocks;
  for (const absl::Span<const AttentionPart> parts : key_spans.spans()) {
    for (int64_t first = 0; first < parts.front().k_rows; first += kKeyBlock) {
      int64_t queries = 0;
      for (const AttentionPart& part : parts)
        queries += std::max<int64_t>(0, part.q_rows - cpu::FirstQueryBlock(part, first));
      for (int64_t head = 0; head < op.groups.key_heads; ++head)
        key_blocks.push_back({parts, first, 0, head, static_cast<double>(queries * op.groups.Size(head))});
    }
  }
  cpu::LongestFirst(key_blocks);
  const PartSpans query_spans(key_spans.parts(), PartSide::kQueries);
  const std::vector<AttentionTask> query_blocks = cpu::QueryTasks(query_spans, op.groups.heads);
  ctx.pool->Run(static_cast<int64_t>(key_blocks.size()), [&](int64_t i) {
    KeyBlock(op, key_blocks[i].parts, key_blocks[i].head, key_blocks[i].first,
             [](const AttentionPart&, int64_t, int64_t) { return QueryGrads<Arithmetic<T>>{}; });
  });
  ctx.pool->Run(static_cast<int64_t>(query_blocks.size()), [&](int64_t i) { QueryBlock(op, query_blocks[i]); });
}

template <class T, class Grad>
void Backward(OpContext& ctx, const Problem<T, Grad>& op, absl::Span<const AttentionPart> parts) {
  struct Pair {
    size_t cluster;
    int64_t head;
    double work;
  };
  const PartSpans query_spans(parts, PartSide::kQueries), key_spans(query_spans.parts(), PartSide::kKeys);
  const std::vector<size_t> cluster_of = cpu::ClustersByQueries(key_spans);
  std::vector<KeySpans> clusters(cluster_of.size());
  for (size_t i = 0; i < cluster_of.size(); ++i) clusters[cluster_of[i]].push_back(key_spans.spans()[i]);
  std::vector<Pair> pairs;
  for (size_t i = 0; i < clusters.size(); ++i) {
    if (clusters[i].empty()) continue;
    double flops = 0;  // of one product of one query head
    for (const absl::Span<const AttentionPart> span : clusters[i]) flops += cpu::CausalGemmFlops(span, 1, op.size);
    for (int64_t head = 0; head < op.groups.key_heads; ++head)
      pairs.push_back({i, head, flops * static_cast<double>(op.groups.Size(head))});
  }
  // A pair is a task of its own only where that leaves no thread idle for long: nine products instead of seven are
  // cheaper than any worse balance.
  cpu::LongestFirst(pairs);
  std::vector<double> busy(static_cast<size_t>(ctx.pool->threads()));
  for (const Pair& pair : pairs) *std::min_element(busy.begin(), busy.end()) += pair.work;
  const double all = std::accumulate(busy.begin(), busy.end(), 0.0);
  const double last = *std::max_element(busy.begin(), busy.end());
  if (last * 7 > all / static_cast<double>(busy.size()) * 9) return ByBlocks(ctx, op, key_spans);
  ctx.pool->Run(static_cast<int64_t>(pairs.size()),
                [&](int64_t i) { WholePair(op, clusters[pairs[i].cluster], pairs[i].head); });
}

// `out` is of dout's dtype T or of its arithmetic type.
template <class T, class Out>
void Delta(OpContext& ctx, const Tensor& dout, const Tensor& out, const Tensor& delta) {
  using A = Arithmetic<T>;
  const int64_t tokens = out.dim(0), heads = out.dim(1), c = out.dim(2);
  A* to = delta.data<A>();
  const cpu::RowView left = cpu::RowsOf(dout), right = cpu::RowsOf(out);
  ctx.pool->ParallelFor(tokens, cpu::RowGrain(heads * c), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const A* a = cpu::ReadRow(dout.data<T>() + left.Offset(t * heads + h), c, ScratchSlot::kRow0);
        const A* b = cpu::ReadRow(out.data<Out>() + right.Offset(t * heads + h), c, ScratchSlot::kRow1);
        to[h * tokens + t] = cpu::DotRow(a, b, c);
      }
    }
  });
}

void AnyDelta(OpContext& ctx, const Tensor& dout, const Tensor& out, const Tensor& delta) {
  if (out.size() == 0) return;
  cpu::ByFloatType(dout.dtype(), [&](auto type) {
    using T = decltype(type);
    if (out.dtype() == dout.dtype())
      Delta<T, T>(ctx, dout, out, delta);
    else
      Delta<T, Arithmetic<T>>(ctx, dout, out, delta);
  });
}

DType StatsType(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

HeadGroups CheckedGradients(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dq,
                            const Tensor& dk, const Tensor& dv, const AttentionOptions& options) {
  CHECK(q.SameShape(dout) && q.SameShape(dq) && k.SameShape(dk) && v.SameShape(dv))
      << "attention's gradients have the shapes of q " << ShapeString(q.shape()) << " and k " << ShapeString(k.shape());
  return cpu::CheckedGroups(q, k, v, options);
}

// `Out`: what dq, dk and dv are of.
template <class T, class Out>
void BackwardOf(OpContext& ctx, const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& delta, const Tensor& lse, absl::Span<const AttentionPart> parts, const Tensor& dq,
                const Tensor& dk, const Tensor& dv, const HeadGroups& groups, float scale, Accumulate accumulate) {
  using A = Arithmetic<T>;
  const Problem<T, Out> op{
      dout,      q, k, v, dq, dk, dv, lse.data<A>(), delta.data<A>(), q.dim(0), q.dim(2), groups, static_cast<A>(scale),
      accumulate};
  Backward(ctx, op, parts);
}

void AnyWholeSequences(OpContext& ctx, const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& delta, const Tensor& lse, absl::Span<const int32_t> cu_seqlens, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, const HeadGroups& groups, float scale) {
  if (q.size() == 0) return;
  cpu::ByFloatType(q.dtype(), [&](auto type) {
    using T = decltype(type);
    BackwardOf<T, T>(ctx, dout, q, k, v, delta, lse, cpu::WholeSequences(cu_seqlens), dq, dk, dv, groups, scale,
                     Accumulate::kOverwrite);
  });
}

}  // namespace

void AttentionDelta(OpContext& ctx, const Tensor& dout, const Tensor& out, const Tensor& delta) {
  CHECK(dout.rank() == 3 && dout.SameShape(out) && delta.shape() == (Shape{out.dim(1), out.dim(0)}))
      << "delta " << ShapeString(delta.shape()) << " of dout " << ShapeString(dout.shape()) << " and out "
      << ShapeString(out.shape());
  const cpu::OpScope scope(ctx, delta, static_cast<double>(dout.bytes() + out.bytes() + delta.bytes()));
  if (!scope.counted()) AnyDelta(ctx, dout, out, delta);
}

void AttentionVarlenBwd(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, absl::Span<const int32_t> cu_seqlens,
                        const Tensor& dq, const Tensor& dk, const Tensor& dv, AttentionOptions options) {
  const HeadGroups groups = CheckedGradients(dout, q, k, v, dq, dk, dv, options);
  CHECK(q.SameShape(out)) << "attention of q " << ShapeString(q.shape()) << " is not " << ShapeString(out.shape());
  const cpu::OpScope scope(ctx, q, 5 * cpu::CausalGemmFlops(cpu::WholeSequences(cu_seqlens), q.dim(1), q.dim(2)),
                           static_cast<double>(4 * q.bytes() + 4 * k.bytes()));
  const Tensor delta = workspace.Live({q.dim(1), q.dim(0)}, StatsType(q.dtype()));
  if (scope.counted()) return;
  AnyDelta(ctx, dout, out, delta);
  AnyWholeSequences(ctx, dout, q, k, v, delta, lse, cu_seqlens, dq, dk, dv, groups, options.scale);
}

void AttentionVarlenBwdDelta(OpContext& ctx, Arena&, const Tensor& dout, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& delta, const Tensor& lse,
                             absl::Span<const int32_t> cu_seqlens, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                             AttentionOptions options) {
  const HeadGroups groups = CheckedGradients(dout, q, k, v, dq, dk, dv, options);
  const cpu::OpScope scope(ctx, q, 5 * cpu::CausalGemmFlops(cpu::WholeSequences(cu_seqlens), q.dim(1), q.dim(2)),
                           static_cast<double>(3 * q.bytes() + 4 * k.bytes() + delta.bytes()));
  if (scope.counted()) return;
  AnyWholeSequences(ctx, dout, q, k, v, delta, lse, cu_seqlens, dq, dk, dv, groups, options.scale);
}

void AttentionPartsBwd(OpContext& ctx, Arena&, const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& delta, const Tensor& lse, absl::Span<const AttentionPart> parts, const Tensor& dq,
                       const Tensor& dk, const Tensor& dv, AttentionOptions options) {
  const HeadGroups groups = CheckedGradients(dout, q, k, v, dq, dk, dv, options);
  cpu::CheckParts(parts, q, k);
  const cpu::OpScope scope(
      ctx, q, 5 * cpu::CausalGemmFlops(parts, q.dim(1), q.dim(2)),
      static_cast<double>(2 * q.bytes() + 2 * k.bytes() + 2 * dq.bytes() + 4 * dk.bytes() + delta.bytes()));
  if (scope.counted() || q.size() == 0) return;
  cpu::ByFloatType(q.dtype(), [&](auto type) {
    using T = decltype(type);
    BackwardOf<T, Arithmetic<T>>(ctx, dout, q, k, v, delta, lse, parts, dq, dk, dv, groups, options.scale,
                                 Accumulate::kAdd);
  });
}

}  // namespace shoal::ops
