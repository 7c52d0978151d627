// The op table: every op against its float64 reference, in every dtype, on every dispatch target, on 1 and 3 threads
// with equal bits.
#include "tests/runtime/ops/op_table.h"

#include <cstring>
#include <limits>

namespace shoal {
namespace {

using ops::Accumulate;
using reference::Values;

Tensor Ints(const std::vector<int32_t>& values) {
  Tensor t = Tensor::Zeros({static_cast<int64_t>(values.size())}, DType::kI32);
  std::copy(values.begin(), values.end(), t.data<int32_t>());
  return t;
}

std::vector<int32_t> SomeInts(int64_t n, int32_t below) {
  std::vector<int32_t> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = static_cast<int32_t>((i * 7919 + 13) % below);
  return v;
}

Row MatmulRow(int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor a = RandomTensor(ta ? Shape{k, m} : Shape{m, k}, t, "a"),
                 b = RandomTensor(tb ? Shape{n, k} : Shape{k, n}, t, "b");
    const Tensor out = Tensor::Zeros({m, n}, t), wide = RandomTensor({m, n}, Wide(t), "c");
    Values sum = ToDoubles(wide);
    const auto yes = [](bool x) { return x ? ops::Transpose::kYes : ops::Transpose::kNo; };
    ops::Matmul(h.ctx, a, b, out, {.transpose_a = yes(ta), .transpose_b = yes(tb)});
    ops::Matmul(h.ctx, a, b, wide, {.transpose_a = yes(ta), .transpose_b = yes(tb), .accumulate = Accumulate::kAdd});
    const Values want = reference::Matmul(ToDoubles(a), ToDoubles(b), m, n, k, ta, tb);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += want[i];
    return {{"out", out, want}, {"added to wide", wide, sum}};
  };
}

Row LinearRow(int64_t rows, int64_t in, int64_t out) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({rows, in}, t, "x"), w = RandomTensor({out, in}, t, "w"),
                 b = RandomTensor({out}, t, "b");
    const Tensor y = Tensor::Zeros({rows, out}, t), db = Tensor::Zeros({out}, Wide(t));
    ops::LinearFwd(h.ctx, x, w, b, y);
    ops::ColumnSum(h.ctx, x.Rows(0, rows), Tensor::Zeros({in}, Wide(t)), Accumulate::kOverwrite);
    ops::ColumnSum(h.ctx, y, db, Accumulate::kOverwrite);
    Values want = reference::Matmul(ToDoubles(x), ToDoubles(w), rows, out, in, false, true);
    for (int64_t i = 0; i < rows * out; ++i) want[i] += At(b, i % out);
    return {{"y", y, want}, {"column sum", db, reference::ColumnSum(ToDoubles(y), rows, out)}};
  };
}

Row BatchedRow() {
  return [](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor a = RandomTensor({3, 17, 9}, t, "a"), b = RandomTensor({3, 9, 21}, t, "b"),
                 out = Tensor::Zeros({3, 17, 21}, t);
    ops::BatchedMatmul(h.ctx, a, b, out);
    Values want;
    for (int64_t i = 0; i < 3; ++i) {
      const Values one =
          reference::Matmul(ToDoubles(a.Rows(i, i + 1)), ToDoubles(b.Rows(i, i + 1)), 17, 21, 9, false, false);
      want.insert(want.end(), one.begin(), one.end());
    }
    return {{"out", out, want}};
  };
}

Row NormRow(bool layer, int64_t rows, int64_t n) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({rows, n}, t, "x", 2), w = RandomTensor({n}, t, "w"), b = RandomTensor({n}, t, "b"),
                 dy = RandomTensor({rows, n}, t, "dy");
    const Tensor y = Tensor::Zeros({rows, n}, t), dx = RandomTensor({rows, n}, t, "dx"),
                 stats = Tensor::Zeros({rows, layer ? 2 : 1}, Wide(t));
    const Tensor dw = Tensor::Zeros({n}, Wide(t)), db = Tensor::Zeros({n}, Wide(t));
    Values want_dx = ToDoubles(dx);
    const Values want = layer ? reference::LayerNorm(ToDoubles(x), ToDoubles(w), ToDoubles(b), 1e-5f)
                              : reference::RmsNorm(ToDoubles(x), ToDoubles(w), 1e-5f);
    const auto grads = layer ? reference::LayerNormBackward(ToDoubles(dy), ToDoubles(x), ToDoubles(w), 1e-5f)
                             : reference::RmsNormBackward(ToDoubles(dy), ToDoubles(x), ToDoubles(w), 1e-5f);
    for (size_t i = 0; i < want_dx.size(); ++i) want_dx[i] += grads.dx[i];
    if (layer) {
      ops::LayerNormFwd(h.ctx, x, w, b, 1e-5f, y, stats);
      ops::LayerNormBwd(h.ctx, dy, x, w, stats, dx, Accumulate::kAdd, dw, db);
      return {{"y", y, want}, {"dx", dx, want_dx}, {"dweight", dw, grads.dweight}, {"dbias", db, grads.dbias}};
    }
    ops::RmsNormFwd(h.ctx, x, w, 1e-5f, y, stats);
    ops::RmsNormBwd(h.ctx, dy, x, w, stats, dx, Accumulate::kAdd, dw);
    return {{"y", y, want}, {"dx", dx, want_dx}, {"dweight", dw, grads.dweight}};
  };
}

Row RopeRow(int64_t tokens, int64_t heads, int64_t size) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({tokens, heads, size}, t, "x"), back = RandomTensor({tokens, heads, size}, t, "y");
    const std::vector<int32_t> positions = SomeInts(tokens, 3000);
    const Values want = reference::Rope(ToDoubles(x), positions, heads, size, 1e4, 1),
                 want_back = reference::Rope(ToDoubles(back), positions, heads, size, 1e4, -1);
    ops::Rope(h.ctx, x, Ints(positions), 1e4, ops::Direction::kForward);
    ops::Rope(h.ctx, back, Ints(positions), 1e4, ops::Direction::kBackward);
    return {{"forward", x, want}, {"backward", back, want_back}};
  };
}

std::vector<Result> GeluCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({37, 129}, t, "x", 3), dy = RandomTensor({37, 129}, t, "dy"),
               y = Tensor::Zeros(x.shape(), t), dx = Tensor::Zeros(x.shape(), t);
  ops::GeluFwd(h.ctx, x, y);
  ops::GeluBwd(h.ctx, dy, x, dx);
  return {{"y", y, reference::Gelu(ToDoubles(x))}, {"dx", dx, reference::GeluBackward(ToDoubles(dy), ToDoubles(x))}};
}

std::vector<Result> SwiGluCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({37, 2 * 65}, t, "x", 3), dy = RandomTensor({37, 65}, t, "dy"),
               y = Tensor::Zeros({37, 65}, t);
  const Values want_d = reference::SwiGluBackward(ToDoubles(dy), ToDoubles(x), 65);
  const Values want = reference::SwiGlu(ToDoubles(x), 65);
  ops::SwiGluFwd(h.ctx, x, y);
  ops::SwiGluBwd(h.ctx, dy, x, x);  // in place
  return {{"y", y, want}, {"d", x, want_d}};
}

std::vector<Result> EmbeddingCase(OpHarness& h, DType t) {
  const std::vector<int32_t> ids = SomeInts(101, 29);
  const Tensor table = RandomTensor({29, 150}, t, "table"), out = Tensor::Zeros({101, 150}, t),
               more = RandomTensor({101, 150}, t, "more");
  const Tensor dout = RandomTensor({101, 150}, t, "dout"), dtable = Tensor::Zeros({29, 150}, Wide(t));
  Values want = reference::Embedding(ids, ToDoubles(table), 150), sum = ToDoubles(more);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += want[i];
  ops::EmbeddingFwd(h.ctx, Ints(ids), table, out, Accumulate::kOverwrite);
  ops::EmbeddingFwd(h.ctx, Ints(ids), table, more, Accumulate::kAdd);
  ops::EmbeddingBwd(h.ctx, Ints(ids), dout, dtable);
  return {{"out", out, want},
          {"added", more, sum},
          {"dtable", dtable, reference::EmbeddingBackward(ids, ToDoubles(dout), 29, 150)}};
}

Row CrossEntropyRow(int64_t rows, int64_t width, int64_t vocabulary, int64_t chunk, float smoothing = 0,
                    float logit_scale = 1) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor hidden = RandomTensor({rows, width}, t, "h"), weight = RandomTensor({vocabulary, width}, t, "w", 0.3);
    std::vector<int32_t> labels = SomeInts(rows, static_cast<int32_t>(vocabulary));
    for (int64_t i = 0; i < rows; i += 5) labels[i] = -1;
    const Tensor dh = Tensor::Zeros(hidden.shape(), t), dw = RandomTensor(weight.shape(), Wide(t), "dw");
    Values want_dw = ToDoubles(dw), scaled = ToDoubles(hidden);
    for (double& value : scaled) value *= logit_scale;
    auto want = reference::LinearCrossEntropy(scaled, ToDoubles(weight), labels, width, 0.25, smoothing);
    for (double& value : want.dhidden) value *= logit_scale;
    for (size_t i = 0; i < want_dw.size(); ++i) want_dw[i] += want.dweight[i];
    const Tensor loss = Tensor::Zeros({2}, DType::kF64), correct = Tensor::Zeros({1}, DType::kF64);
    int64_t right = 0;
    loss.data<double>()[0] = ops::LinearCrossEntropy(h.ctx, *h.arena, hidden, weight, Ints(labels), dh, dw,
                                                     {.grad_scale = 0.25f,
                                                      .logit_scale = logit_scale,
                                                      .label_smoothing = smoothing,
                                                      .correct = &right,
                                                      .chunk_rows = chunk});
    correct.data<double>()[0] = static_cast<double>(right);
    loss.data<double>()[1] =
        ops::LinearCrossEntropy(h.ctx, *h.arena, hidden, weight, Ints(labels), Tensor(), Tensor(),
                                {.logit_scale = logit_scale, .label_smoothing = smoothing, .chunk_rows = chunk});
    return {{"loss", loss, {want.loss, want.loss}},
            {"correct", correct, {static_cast<double>(want.correct)}},
            {"dhidden", dh, want.dhidden},
            {"dweight", dw, want_dw}};
  };
}

std::vector<Result> ElementwiseCase(OpHarness& h, DType t) {
  const Tensor a = RandomTensor({9001}, t, "a"), b = RandomTensor({9001}, t, "b"), sum = Tensor::Zeros({9001}, t);
  const Tensor wide = RandomTensor({9001}, Wide(t), "wide"), scaled = RandomTensor({9001}, t, "a"),
               filled = Tensor::Zeros({77}, t);
  Values want_sum(9001), want_wide = ToDoubles(wide), want_scaled(9001);
  for (int i = 0; i < 9001; ++i) {
    want_sum[i] = At(a, i) + At(b, i);
    want_wide[i] += 0.5 * At(a, i);
    want_scaled[i] = 4 * At(a, i);
  }
  ops::Add(h.ctx, a, b, sum);
  ops::AddScaled(h.ctx, a, 0.5f, wide);
  ops::Scale(h.ctx, scaled, 4.0f);
  ops::Fill(h.ctx, filled, 1.5f);
  const Tensor copied = Tensor::Zeros({9001}, DType::kF32);
  ops::Copy(h.ctx, a, copied);
  return {{"sum", sum, want_sum},
          {"wide", wide, want_wide},
          {"scaled", scaled, want_scaled},
          {"filled", filled, Values(77, 1.5)},
          {"copied", copied, ToDoubles(a)}};
}

std::vector<Result> ReductionCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({200003}, t, "x");
  double squares = 0, most = 0;
  for (int64_t i = 0; i < x.size(); ++i) {
    squares += At(x, i) * At(x, i);
    most = std::max(most, std::abs(At(x, i)));
  }
  const Tensor got = Tensor::Zeros({2}, DType::kF64);
  got.data<double>()[0] = ops::SumOfSquares(h.ctx, x);
  got.data<double>()[1] = ops::MaxAbs(h.ctx, x);
  return {{"reductions", got, {squares, most}}};
}

// Kept units are scaled, and which are kept depends on token and column only.
std::vector<Result> DropoutCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({64, 30}, t, "x"), y = Tensor::Zeros({64, 30}, t), again = Tensor::Zeros({64, 30}, t);
  Tensor counters = Tensor::Zeros({64}, DType::kI64);
  for (int64_t i = 0; i < 64; ++i) counters.data<int64_t>()[i] = static_cast<int64_t>(TokenCounter(i / 10, i % 10));
  const RngKey key{3, RngPurpose::kDropout, 5};
  ops::Dropout(h.ctx, x, 0.5f, key, counters, y);
  for (int64_t i = 0; i < 64; ++i)
    ops::Dropout(h.ctx, x.Rows(i, i + 1), 0.5f, key, counters.Rows(i, i + 1), again.Rows(i, i + 1));
  int64_t kept = 0;
  Values want(y.size());
  for (int64_t i = 0; i < y.size(); ++i) {
    want[i] = At(y, i) == 0 ? 0 : 2 * At(x, i);
    kept += At(y, i) != 0;
  }
  EXPECT_NEAR(static_cast<double>(kept), 960, 120);
  return {{"scaled", y, want}, {"row by row", again, ToDoubles(y)}};
}

std::vector<OpRow> Rows() {
  std::vector<OpRow> rows;
  for (int i = 0; i < 4; ++i)
    rows.push_back({"matmul" + std::to_string(i), MatmulRow(130, 70, 33, (i & 1) != 0, (i & 2) != 0)});
  rows.push_back({"matmul_large", MatmulRow(513, 257, 300, false, true)});
  rows.push_back({"matmul_empty", MatmulRow(0, 5, 7, false, false)});
  rows.push_back({"linear", LinearRow(67, 40, 300)});
  rows.push_back({"batched", BatchedRow()});
  rows.push_back({"layer_norm", NormRow(true, 50, 200)});
  rows.push_back({"layer_norm_narrow", NormRow(true, 3, 1 + 2)});
  rows.push_back({"rms_norm", NormRow(false, 50, 200)});
  rows.push_back({"rope", RopeRow(33, 3, 16)});
  rows.push_back({"gelu", GeluCase});
  rows.push_back({"swiglu", SwiGluCase});
  rows.push_back({"embedding", EmbeddingCase});
  rows.push_back({"cross_entropy", CrossEntropyRow(50, 24, 61, 0)});
  rows.push_back({"cross_entropy_chunks", CrossEntropyRow(50, 24, 61, 7)});
  rows.push_back({"cross_entropy_smoothed", CrossEntropyRow(50, 24, 61, 7, 0.1f)});
  rows.push_back({"cross_entropy_scaled", CrossEntropyRow(50, 24, 61, 7, 0.1f, 0.375f)});
  rows.push_back({"cross_entropy_few_classes", CrossEntropyRow(200, 24, 3, 0, 0.1f)});
  rows.push_back({"elementwise", ElementwiseCase});
  rows.push_back({"reductions", ReductionCase});
  rows.push_back({"dropout", DropoutCase});
  return rows;
}

TEST_P(OpTable, EqualsReferenceOnAnyNumberOfThreads) {
  ExpectEqualsReferenceOnAnyNumberOfThreads(std::get<0>(GetParam()), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(All, OpTable,
                         testing::Combine(testing::ValuesIn(Rows()),
                                          testing::Values(DType::kF32, DType::kF64, DType::kBF16)),
                         OpTableName);

// Every element becomes one of its two neighbours, the upper one as often as it is nearer; whatever is cut and on
// whatever target, the bits are the same.
TEST(Ops, StochasticRoundingIsUnbiasedAndKnowsNoCuts) {
  constexpr int64_t kSize = 40003;
  const Tensor x = RandomTensor({kSize}, DType::kF32, "x");
  x.data<float>()[3] = std::numeric_limits<float>::infinity();
  x.data<float>()[4] = std::numeric_limits<float>::quiet_NaN();
  const RngKey key{9, RngPurpose::kStochasticRounding, NameHash("blocks.0.mlp.up.weight"), 17};
  const Rng rng(key);
  std::string first;
  OnEachDispatchTarget([&] {
    OpHarness h(3);
    const Tensor whole = Tensor::Zeros({kSize}, DType::kBF16), cut = Tensor::Zeros({kSize}, DType::kBF16);
    ops::StochasticRound(h.ctx, x, key, 1000, whole);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 14}, {14, 33333}, {33333, kSize}})
      ops::StochasticRound(h.ctx, x.Rows(begin, end), key, 1000 + begin, cut.Rows(begin, end));
    const std::string bits(static_cast<const char*>(whole.raw()), static_cast<size_t>(whole.bytes()));
    EXPECT_EQ(0, std::memcmp(whole.raw(), cut.raw(), static_cast<size_t>(whole.bytes())));
    if (first.empty()) first = bits;
    EXPECT_EQ(first, bits) << "differs between dispatch targets";
    double error = 0;
    for (int64_t i = 0; i < kSize; ++i) {
      if (i == 3 || i == 4) continue;
      uint32_t u;
      std::memcpy(&u, x.data<float>() + i, 4);
      const uint64_t element = 1000 + static_cast<uint64_t>(i);
      const uint32_t lot = rng.Words(0, element / 8)[element % 8 / 2] >> (16 * (element % 2)) & 0xffff;
      ASSERT_EQ(whole.data<BFloat16>()[i].bits, static_cast<uint16_t>((u + lot) >> 16)) << i;
      error += (At(whole, i) - At(x, i)) / std::abs(At(x, i));
    }
    EXPECT_TRUE(std::isinf(At(whole, 3)) && std::isnan(At(whole, 4)));
    // One draw's relative error has a deviation below 2^-7 / sqrt(6); rounding to nearest of one value would be off by
    // more.
    EXPECT_LT(std::abs(error) / kSize, 4 * 0x1p-7 / std::sqrt(6.0 * kSize));
  });
}

TEST(Ops, AllFiniteSeesNanAndInfinity) {
  OpHarness h;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    Tensor x = RandomTensor({5000}, DType::kF32, "x");
    EXPECT_TRUE(ops::AllFinite(h.ctx, x));
    x.data<float>()[4321] = bad;
    EXPECT_FALSE(ops::AllFinite(h.ctx, x));
  }
}

TEST(Ops, DryRunCountsAndComputesNothing) {
  CostSheet cost;
  OpContext ctx{.cost = &cost};
  const auto arena = *Arena::Create(1 << 20, DeviceKind::kMeta);
  const Tensor a = arena->Live({10, 20}, DType::kF32), b = arena->Live({20, 30}, DType::kF32),
               out = arena->Live({10, 30}, DType::kF32);
  ops::Matmul(ctx, a, b, out);
  EXPECT_EQ(cost.ops.size(), 1u);
  EXPECT_EQ(cost.ops["Matmul.NN"].flops, 2.0 * 10 * 20 * 30);
  EXPECT_EQ(cost.ops["Matmul.NN"].bytes, 4.0 * (10 * 20 + 20 * 30 + 10 * 30));
}

// A dry run counts what a real run reports, op by op, and takes as much of the arena.
TEST(Ops, DryRunCountsWhatARealRunReports) {
  class Sheet : public SpanSink {
   public:
    void Add(const Span& span) override { sheet.ops[std::string(span.name)] += {1, span.flops, span.bytes}; }
    CostSheet sheet;
  };
  const auto run = [](OpContext ctx, DeviceKind device) {
    const auto arena = *Arena::Create(1 << 20, device);
    const auto tensor = [&](Shape shape) {
      const Tensor t = arena->Live(std::move(shape), DType::kF32);
      if (device == DeviceKind::kCpu) std::fill(t.data<float>(), t.data<float>() + t.size(), 0.25f);
      return t;
    };
    const Tensor x = tensor({8, 4, 6}), y = tensor({8, 4, 6}), lse = tensor({4, 8}), bias = tensor({24}),
                 w = tensor({24, 24});
    const std::vector<int32_t> cu = {0, 3, 8};
    const std::vector<ops::AttentionPart> parts = {{.q_begin = 1, .q_rows = 5, .k_rows = 8, .k_position = 2},
                                                   {.q_begin = 6, .k_begin = 2, .k_rows = 3}};
    const ops::AttentionOptions options{.scale = 0.5f};
    ops::AttentionVarlenFwd(ctx, *arena, x, x, x, cu, y, lse, options);
    ops::AttentionVarlenBwd(ctx, *arena, x, x, x, x, y, lse, cu, y, y, y, options);
    ops::AttentionDelta(ctx, x, x, lse);
    ops::AttentionVarlenBwdDelta(ctx, *arena, x, x, x, x, lse, lse, cu, y, y, y, options);
    ops::AttentionPartsFwd(ctx, *arena, x, x, x, parts, y, lse, options);
    ops::AttentionPartsBwd(ctx, *arena, x, x, x, x, lse, lse, parts, y, y, y, options);
    ops::LinearFwd(ctx, x.View({8, 24}), w, bias, y.View({8, 24}));
    ops::GeluFwd(ctx, x, y);
    return arena->peak();
  };
  Sheet timed;
  CostSheet counted;
  ThreadPool pool(1);
  const int64_t peak = run({.pool = &pool, .spans = &timed}, DeviceKind::kCpu);
  EXPECT_EQ(run({.cost = &counted}, DeviceKind::kMeta), peak);
  ASSERT_EQ(timed.sheet.ops.size(), 9u);
  for (const auto& [name, cost] : timed.sheet.ops) {
    EXPECT_EQ(counted.ops[name].calls, cost.calls) << name;
    EXPECT_EQ(counted.ops[name].flops, cost.flops) << name;
    EXPECT_EQ(counted.ops[name].bytes, cost.bytes) << name;
  }
}

}  // namespace
}  // namespace shoal
