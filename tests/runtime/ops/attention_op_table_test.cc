// The op table of attention: whole sequences, and parts of them as ranks of a ring hold them.
#include <array>
#include <cstring>
#include <limits>

#include "tests/runtime/ops/op_table.h"

namespace shoal {
namespace {

using ops::AttentionPart;
using reference::Values;

struct Heads {
  int64_t heads = 1, key_heads = 1, size = 1;
  int64_t kv_group = 0, first_head = 0;
  ops::AttentionOptions options() const {
    return {.scale = 1.0f / std::sqrt(static_cast<float>(size)), .kv_group = kv_group, .first_head = first_head};
  }
  Shape fused(int64_t tokens) const { return {tokens, heads + 2 * key_heads, size}; }
  Shape queries(int64_t tokens) const { return {tokens, heads, size}; }
  Shape keys(int64_t tokens) const { return {tokens, key_heads, size}; }
  // q, k and v: views of one fused projection, as models use them.
  std::array<Tensor, 3> Split(const Tensor& x) const {
    return {x.Slice(1, 0, heads), x.Slice(1, heads, heads + key_heads),
            x.Slice(1, heads + key_heads, heads + 2 * key_heads)};
  }
};

Tensor Dense(OpHarness& h, const Tensor& x) {
  const Tensor copy = Tensor::Zeros(x.shape(), x.dtype());
  ops::Copy(h.ctx, x, copy);
  return copy;
}

struct Wanted {
  reference::AttentionOut forward;
  reference::AttentionGrads grads;
  Values delta;  // [H, T]
};
Wanted Want(OpHarness& h, const Heads& heads, const std::vector<int32_t>& cu, const Tensor& fused, const Tensor& dout) {
  const auto [q, k, v] = heads.Split(fused);
  const Values vq = ToDoubles(Dense(h, q)), vk = ToDoubles(Dense(h, k)), vv = ToDoubles(Dense(h, v));
  const reference::AttentionShape shape{
      cu, heads.heads, heads.key_heads, heads.size, heads.options().scale, heads.kv_group, heads.first_head};
  Wanted want{
      reference::Attention(shape, vq, vk, vv), reference::AttentionBackward(shape, ToDoubles(dout), vq, vk, vv), {}};
  const int64_t tokens = cu.back();
  want.delta.resize(heads.heads * tokens);
  for (int64_t i = 0; i < dout.size(); ++i) {
    const int64_t row = i / heads.size;
    want.delta[row % heads.heads * tokens + row / heads.heads] += At(dout, i) * want.forward.out[i];
  }
  return want;
}

Row AttentionRow(std::vector<int32_t> cu, Heads heads) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const int64_t tokens = cu.back();
    const Tensor fused = RandomTensor(heads.fused(tokens), t, "qkv"), dfused = RandomTensor(fused.shape(), t, "d"),
                 other = RandomTensor(fused.shape(), t, "d");
    const auto [q, k, v] = heads.Split(fused);
    const auto [dq, dk, dv] = heads.Split(dfused);
    const auto [other_dq, other_dk, other_dv] = heads.Split(other);
    const Tensor out = Tensor::Zeros(heads.queries(tokens), t), lse = Tensor::Zeros({heads.heads, tokens}, Wide(t)),
                 delta = Tensor::Zeros(lse.shape(), Wide(t));
    const Tensor dout = RandomTensor(out.shape(), t, "dout");
    const ops::AttentionOptions options = heads.options();
    ops::AttentionVarlenFwd(h.ctx, *h.arena, q, k, v, cu, out, lse, options);
    ops::AttentionVarlenBwd(h.ctx, *h.arena, dout, q, k, v, out, lse, cu, dq, dk, dv, options);
    ops::AttentionDelta(h.ctx, dout, out, delta);
    ops::AttentionVarlenBwdDelta(h.ctx, *h.arena, dout, q, k, v, delta, lse, cu, other_dq, other_dk, other_dv, options);
    EXPECT_EQ(0, std::memcmp(dfused.raw(), other.raw(), dfused.bytes())) << "from delta and from out";
    const Wanted want = Want(h, heads, cu, fused, dout);
    return {{"out", out, want.forward.out},      {"lse", lse, want.forward.lse},
            {"delta", delta, want.delta},        {"dq", Dense(h, dq), want.grads.dq},
            {"dk", Dense(h, dk), want.grads.dk}, {"dv", Dense(h, dv), want.grads.dv}};
  };
}

// Which tokens of the packed batch a rank holds, in the order of its rows, in pieces of sequences.
struct Piece {
  int64_t sequence, begin, rows, position;  // `begin` counts rows of the rank
};
struct Shard {
  std::vector<int64_t> tokens;
  std::vector<Piece> pieces;
};

// Every sequence is cut in 2 N pieces, as equal as they can be; rank r holds pieces r and 2 N - 1 - r of each.
std::vector<Shard> Zigzag(const std::vector<int32_t>& cu, int64_t ranks) {
  std::vector<Shard> shards(ranks);
  for (int64_t r = 0; r < ranks; ++r) {
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      const int64_t length = cu[s + 1] - cu[s];
      for (const int64_t piece : {r, 2 * ranks - 1 - r}) {
        const int64_t from = length * piece / (2 * ranks), to = length * (piece + 1) / (2 * ranks);
        auto& [tokens, pieces] = shards[r];
        pieces.push_back({static_cast<int64_t>(s), static_cast<int64_t>(tokens.size()), to - from, from});
        for (int64_t i = from; i < to; ++i) tokens.push_back(cu[s] + i);
      }
    }
  }
  return shards;
}

std::vector<AttentionPart> PartsOf(const Shard& queries, const Shard& keys) {
  std::vector<AttentionPart> parts;
  for (const Piece& q : queries.pieces) {
    for (const Piece& k : keys.pieces) {
      if (q.sequence == k.sequence) parts.push_back({q.begin, q.rows, q.position, k.begin, k.rows, k.position});
    }
  }
  return parts;
}

Tensor Gather(OpHarness& h, const Tensor& from, const std::vector<int64_t>& rows) {
  Shape shape = from.shape();
  shape[0] = static_cast<int64_t>(rows.size());
  const Tensor to = Tensor::Zeros(shape, from.dtype());
  for (int64_t i = 0; i < shape[0]; ++i) ops::Copy(h.ctx, from.Rows(rows[i], rows[i] + 1), to.Rows(i, i + 1));
  return to;
}
void Scatter(OpHarness& h, const Tensor& from, const std::vector<int64_t>& rows, const Tensor& to) {
  for (int64_t i = 0; i < from.dim(0); ++i) ops::Copy(h.ctx, from.Rows(i, i + 1), to.Rows(rows[i], rows[i] + 1));
}

// A running result of a rank's queries: lse is stored [H, T], so that rows of tokens are copied by head.
struct Running {
  Tensor out, lse, delta;
};
Running NewRunning(const Heads& heads, int64_t tokens, DType t) {
  Running run{Tensor::Zeros(heads.queries(tokens), Wide(t)), Tensor::Zeros({heads.heads, tokens}, Wide(t)),
              Tensor::Zeros({heads.heads, tokens}, Wide(t))};
  for (int64_t i = 0; i < run.lse.size(); ++i) {
    if (t == DType::kF64)
      run.lse.data<double>()[i] = -std::numeric_limits<double>::infinity();
    else
      run.lse.data<float>()[i] = -std::numeric_limits<float>::infinity();
  }
  return run;
}

// Ranks in a ring: in step s rank r has the keys of rank r - s. All together they compute whole attention.
Row RingRow(std::vector<int32_t> cu, int64_t ranks, Heads heads) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const int64_t tokens = cu.back();
    const DType wide = Wide(t);
    const Tensor fused = RandomTensor(heads.fused(tokens), t, "qkv"),
                 dout = RandomTensor(heads.queries(tokens), t, "dout");
    const Tensor out = Tensor::Zeros(heads.queries(tokens), wide), dq = Tensor::Zeros(out.shape(), wide),
                 dk = Tensor::Zeros(heads.keys(tokens), wide), dv = Tensor::Zeros(heads.keys(tokens), wide);
    const Tensor lse = Tensor::Zeros({tokens, heads.heads, 1}, wide), delta = Tensor::Zeros(lse.shape(), wide);
    const std::vector<Shard> shards = Zigzag(cu, ranks);
    std::vector<Tensor> shard_fused, shard_dk, shard_dv;
    for (const Shard& shard : shards) {
      shard_fused.push_back(Gather(h, fused, shard.tokens));
      // Gradients are added to what is there.
      shard_dk.push_back(Gather(h, RandomTensor(dk.shape(), wide, "dk"), shard.tokens));
      shard_dv.push_back(Gather(h, RandomTensor(dv.shape(), wide, "dv"), shard.tokens));
    }
    for (int64_t r = 0; r < ranks; ++r) {
      const auto& at = shards[r].tokens;
      const auto rows = static_cast<int64_t>(at.size());
      const Running run = NewRunning(heads, rows, t);
      const Tensor q = heads.Split(shard_fused[r])[0], my_dout = Gather(h, dout, at),
                   my_dq = Tensor::Zeros(heads.queries(rows), wide);
      const auto each_step = [&](auto step) {
        for (int64_t s = 0; s < ranks; ++s) {
          const int64_t source = (r - s + ranks) % ranks;
          const auto [unused, k, v] = heads.Split(shard_fused[source]);
          step(source, k, v, PartsOf(shards[r], shards[source]));
        }
      };
      each_step([&](int64_t, const Tensor& k, const Tensor& v, const std::vector<AttentionPart>& parts) {
        ops::AttentionPartsFwd(h.ctx, *h.arena, q, k, v, parts, run.out, run.lse, heads.options());
      });
      ops::AttentionDelta(h.ctx, my_dout, run.out, run.delta);
      each_step([&](int64_t source, const Tensor& k, const Tensor& v, const std::vector<AttentionPart>& parts) {
        ops::AttentionPartsBwd(h.ctx, *h.arena, my_dout, q, k, v, run.delta, run.lse, parts, my_dq, shard_dk[source],
                               shard_dv[source], heads.options());
      });
      Scatter(h, run.out, at, out);
      Scatter(h, my_dq, at, dq);
      for (int64_t head = 0; head < heads.heads; ++head) {
        Scatter(h, run.lse.Rows(head, head + 1).View({rows, 1, 1}), at, lse.Slice(1, head, head + 1));
        Scatter(h, run.delta.Rows(head, head + 1).View({rows, 1, 1}), at, delta.Slice(1, head, head + 1));
      }
    }
    for (int64_t r = 0; r < ranks; ++r) {
      Scatter(h, shard_dk[r], shards[r].tokens, dk);
      Scatter(h, shard_dv[r], shards[r].tokens, dv);
    }
    Wanted want = Want(h, heads, cu, fused, dout);
    const auto by_token = [&](const Values& by_head) {
      Values values(by_head.size());
      for (size_t i = 0; i < values.size(); ++i) values[i] = by_head[i % heads.heads * tokens + i / heads.heads];
      return values;
    };
    const auto added = [&](Values grads, const char* name) {
      const Tensor before = RandomTensor(dk.shape(), wide, name);
      for (size_t i = 0; i < grads.size(); ++i) grads[i] += At(before, static_cast<int64_t>(i));
      return grads;
    };
    return {{"out", out, want.forward.out},         {"lse", lse, by_token(want.forward.lse)},
            {"delta", delta, by_token(want.delta)}, {"dq", dq, want.grads.dq},
            {"dk", dk, added(want.grads.dk, "dk")}, {"dv", dv, added(want.grads.dv, "dv")}};
  };
}

// One sequence in one call, in parts whose rows overlap as they like; all operands are views of fused tensors.
Row PartsRow(int32_t tokens, std::vector<AttentionPart> parts, Heads heads) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor fused = RandomTensor(heads.fused(tokens), t, "qkv"),
                 dfused = Tensor::Zeros(heads.fused(tokens), Wide(t)),
                 pair = RandomTensor({tokens, 2 * heads.heads, heads.size}, t, "dout"),
                 results = Tensor::Zeros(pair.shape(), Wide(t));
    const auto [q, k, v] = heads.Split(fused);
    const auto [dq, dk, dv] = heads.Split(dfused);
    const Tensor dout = pair.Slice(1, heads.heads, 2 * heads.heads), out = results.Slice(1, 0, heads.heads);
    const Running run = NewRunning(heads, tokens, t);
    ops::AttentionPartsFwd(h.ctx, *h.arena, q, k, v, parts, out, run.lse, heads.options());
    ops::AttentionDelta(h.ctx, dout, out, run.delta);
    ops::AttentionPartsBwd(h.ctx, *h.arena, dout, q, k, v, run.delta, run.lse, parts, dq, dk, dv, heads.options());
    const Wanted want = Want(h, heads, {0, tokens}, fused, Dense(h, dout));
    return {{"out", Dense(h, out), want.forward.out}, {"lse", run.lse, want.forward.lse},
            {"delta", run.delta, want.delta},         {"dq", Dense(h, dq), want.grads.dq},
            {"dk", Dense(h, dk), want.grads.dk},      {"dv", Dense(h, dv), want.grads.dv}};
  };
}

// Rows that no part has, or that see no key of theirs, stay as they are to the bit, and so do all without parts.
std::vector<Result> UntouchedCase(OpHarness& h, DType t) {
  constexpr int64_t kTokens = 20;
  const Heads heads{.heads = 2, .key_heads = 1, .size = 8};
  const Tensor fused = RandomTensor(heads.fused(kTokens), t, "qkv"),
               dout = RandomTensor(heads.queries(kTokens), t, "dout");
  const auto views = heads.Split(fused);
  const Tensor &q = views[0], &k = views[1], &v = views[2];
  const Tensor out = RandomTensor(heads.queries(kTokens), Wide(t), "out"),
               dq = RandomTensor(out.shape(), Wide(t), "dq"),
               lse = RandomTensor({heads.heads, kTokens}, Wide(t), "lse"),
               delta = RandomTensor(lse.shape(), Wide(t), "l"), dk = RandomTensor(heads.keys(kTokens), Wide(t), "dk"),
               dv = RandomTensor(dk.shape(), Wide(t), "dv");
  const std::vector<Result> same = {{"out", out, ToDoubles(out)},
                                    {"lse", lse, ToDoubles(lse)},
                                    {"dq", dq, ToDoubles(dq)},
                                    {"dk", dk, ToDoubles(dk)},
                                    {"dv", dv, ToDoubles(dv)}};
  const auto run = [&](const std::vector<AttentionPart>& parts, const Running& to) {
    ops::AttentionPartsFwd(h.ctx, *h.arena, q, k, v, parts, to.out, to.lse, heads.options());
    ops::AttentionPartsBwd(h.ctx, *h.arena, dout, q, k, v, to.delta, to.lse, parts, dq, dk, dv, heads.options());
  };
  const AttentionPart later{.q_rows = 12, .k_begin = 1, .k_rows = 15, .k_position = 12}, no_queries{.k_rows = 20},
      no_keys{.q_begin = 3, .q_rows = 17};
  run({}, {out, lse, delta});
  run({later, no_queries, no_keys}, {out, lse, delta});
  // Before the first key: still nothing, and no NaN of it.
  const Running fresh = NewRunning(heads, kTokens, t);
  run({later, no_keys}, fresh);
  for (int64_t i = 0; i < fresh.out.size(); ++i) EXPECT_EQ(At(fresh.out, i), 0);
  for (int64_t i = 0; i < fresh.lse.size(); ++i) EXPECT_EQ(At(fresh.lse, i), -std::numeric_limits<double>::infinity());
  for (const Result& result : same) {
    for (int64_t i = 0; i < result.got.size(); ++i) EXPECT_EQ(At(result.got, i), result.want[i]) << result.name;
  }
  // Of the queries 4 .. 9 only the last two see a key.
  ops::AttentionPartsFwd(h.ctx, *h.arena, q, k, v, std::vector<AttentionPart>{{4, 6, 0, 0, 5, 4}}, fresh.out, fresh.lse,
                         heads.options());
  for (int64_t i = 0; i < fresh.lse.size(); ++i) {
    const int64_t token = i % kTokens;
    EXPECT_EQ(std::isfinite(At(fresh.lse, i)), token == 8 || token == 9) << token;
  }
  for (int64_t i = 0; i < fresh.out.size(); ++i) {
    const int64_t token = i / (heads.heads * heads.size);
    EXPECT_EQ(At(fresh.out, i) != 0, token == 8 || token == 9) << token;
  }
  return same;
}

std::vector<OpRow> AttentionRows() {
  const Heads uneven{.heads = 4, .key_heads = 2, .size = 16, .kv_group = 5, .first_head = 3};
  const Heads spare{.heads = 3, .key_heads = 3, .size = 8, .kv_group = 2, .first_head = 1};
  const std::vector<int32_t> documents = {0, 1, 3, 10, 140, 440};
  std::vector<OpRow> rows;
  rows.push_back({"attention", AttentionRow({0, 5, 6, 140, 140, 300}, {4, 4, 16})});
  rows.push_back({"attention_gqa", AttentionRow({0, 97, 290}, {6, 2, 8})});
  rows.push_back({"attention_long", AttentionRow({0, 700}, {1, 1, 32})});
  rows.push_back({"attention_one_token", AttentionRow({0, 1}, {2, 1, 64})});
  rows.push_back({"attention_no_tokens", AttentionRow({0, 0}, {2, 1, 64})});
  rows.push_back({"attention_no_sequences", AttentionRow({0}, {2, 1, 64})});
  rows.push_back({"attention_uneven_groups", AttentionRow({0, 97, 290}, uneven)});
  rows.push_back({"attention_uneven_groups_long", AttentionRow({0, 600}, uneven)});
  rows.push_back({"attention_uneven_groups_many", AttentionRow({0, 40, 100, 140, 200, 259, 301}, uneven)});
  rows.push_back({"attention_key_head_of_nobody", AttentionRow({0, 40, 80, 120, 160, 200, 300}, spare)});
  rows.push_back({"attention_ring", RingRow(documents, 3, {4, 2, 16})});
  rows.push_back({"attention_ring_uneven_groups", RingRow(documents, 3, uneven)});
  rows.push_back({"attention_ring_key_head_of_nobody", RingRow({0, 31, 70}, 2, spare)});
  rows.push_back({"attention_ring_long", RingRow({0, 1900}, 2, {1, 1, 8})});
  rows.push_back({"attention_ring_empty_ranks", RingRow({0, 1, 3}, 3, {2, 2, 16})});
  rows.push_back({"attention_ring_no_tokens", RingRow({0, 0}, 2, {2, 2, 16})});
  rows.push_back({"attention_ring_of_one", RingRow(documents, 1, {2, 1, 16})});
  rows.push_back({"attention_parts_by_keys",
                  PartsRow(300, {{0, 300, 0, 0, 100, 0}, {250, 50, 250, 250, 50, 250}, {100, 200, 100, 100, 150, 100}},
                           {4, 2, 16})});
  rows.push_back(
      {"attention_parts_by_queries", PartsRow(700, {{0, 150, 0, 0, 150, 0}, {150, 550, 150, 0, 700, 0}}, {2, 1, 16})});
  rows.push_back({"attention_parts_untouched", UntouchedCase});
  return rows;
}

class AttentionOpTable : public OpTable {};

TEST_P(AttentionOpTable, EqualsReferenceOnAnyNumberOfThreads) {
  ExpectEqualsReferenceOnAnyNumberOfThreads(std::get<0>(GetParam()), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(All, AttentionOpTable,
                         testing::Combine(testing::ValuesIn(AttentionRows()),
                                          testing::Values(DType::kF32, DType::kF64, DType::kBF16)),
                         OpTableName);

// What cannot be: the last query head has no key head; the first is past its group; a part's rows are not there.
TEST(AttentionDeathTest, ChecksHeadsAndRows) {
  OpHarness h(1);
  const Tensor q = RandomTensor({8, 4, 16}, DType::kF32, "q"), k = RandomTensor({8, 2, 16}, DType::kF32, "k"),
               out = Tensor::Zeros(q.shape(), DType::kF32), lse = Tensor::Zeros({4, 8}, DType::kF32);
  const auto run = [&](const AttentionPart& part, int64_t group, int64_t first) {
    ops::AttentionPartsFwd(h.ctx, *h.arena, q, k, k, absl::MakeConstSpan(&part, 1), out, lse,
                           {.scale = 1, .kv_group = group, .first_head = first});
  };
  const AttentionPart whole{.q_rows = 8, .k_rows = 8};
  run(whole, 3, 2);
  EXPECT_DEATH(run(whole, 2, 1), "do not fit");
  EXPECT_DEATH(run(whole, 4, 4), "do not fit");
  EXPECT_DEATH(run(whole, 0, 1), "kv_group is not set");
  EXPECT_DEATH(run({.q_begin = 1, .q_rows = 8, .k_rows = 8}, 0, 0), "q rows 1 \\+ 8 of 8");
  EXPECT_DEATH(run({.q_rows = 8, .k_rows = 9}, 0, 0), "k rows 0 \\+ 9 of 8");
}

}  // namespace
}  // namespace shoal
