// The table of image ops: every op against its float64 reference, in every dtype, on every dispatch target, on 1 and 3
// threads with equal bits.
#include "runtime/ops/image_ops.h"
#include "runtime/ops/reference/image_reference.h"
#include "tests/runtime/ops/op_table.h"

namespace shoal {
namespace {

using ops::Accumulate;
using ops::ConvPath;
using ops::Relu;
using reference::Values;

Row ConvRow(reference::Conv v, ConvPath path) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({v.n, v.h, v.w, v.c}, t, "x"),
                 w = RandomTensor({v.o, v.kh, v.kw, v.c / v.groups}, t, "w");
    const Tensor y = RandomTensor({v.n, v.p(), v.q(), v.o}, t, "y"), dy = RandomTensor(y.shape(), t, "dy"),
                 dx = RandomTensor(x.shape(), t, "dx"), dw = RandomTensor(w.shape(), Wide(t), "dw"),
                 more = RandomTensor(w.shape(), Wide(t), "more");
    Values sum = ToDoubles(more);
    const Values want_dw = reference::Conv2dBackwardWeight(v, ToDoubles(dy), ToDoubles(x));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += want_dw[i];
    ops::Conv2dOptions options{v.stride, v.padding, v.groups, path};
    if (!ops::ConvServes(x.shape(), w.shape(), t, options)) return {};
    ops::Conv2dFwd(h.ctx, *h.arena, x, w, y, options);
    ops::Conv2dBwdInput(h.ctx, *h.arena, dy, w, dx, options);
    ops::Conv2dBwdWeight(h.ctx, *h.arena, dy, x, dw, Accumulate::kOverwrite, options);
    ops::Conv2dBwdWeight(h.ctx, *h.arena, dy, x, more, Accumulate::kAdd, options);
    return {{"y", y, reference::Conv2d(v, ToDoubles(x), ToDoubles(w))},
            {"dx", dx, reference::Conv2dBackwardInput(v, ToDoubles(dy), ToDoubles(w))},
            {"dweight", dw, want_dw},
            {"dweight added", more, sum}};
  };
}

Row BatchNormRow(Shape shape, Relu relu, bool with_residual) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const int64_t c = shape.back();
    ops::BatchNormInputs in{.x = RandomTensor(shape, t, "x", 2), .relu = relu};
    in.weight = RandomTensor({c}, t, "w"), in.bias = RandomTensor({c}, Wide(t), "b");
    if (with_residual) in.residual = RandomTensor(shape, t, "residual");
    for (int64_t i = 0; i < in.x.size(); i += 3) {  // a mean that is not zero
      if (t == DType::kF32) in.x.data<float>()[i] += 5;
    }
    const reference::BatchNorm norm{.x = ToDoubles(in.x),
                                    .residual = with_residual ? ToDoubles(in.residual) : Values(),
                                    .weight = ToDoubles(in.weight),
                                    .bias = ToDoubles(in.bias),
                                    .relu = relu == Relu::kYes};
    const auto s = reference::Statistics(norm);
    in.mean = Tensor::Zeros({c}, Wide(t)), in.rstd = Tensor::Zeros({c}, Wide(t));
    for (int64_t i = 0; i < c; ++i) {
      if (t == DType::kF64)
        in.mean.data<double>()[i] = s.mean[i], in.rstd.data<double>()[i] = s.rstd[i];
      else
        in.mean.data<float>()[i] = static_cast<float>(s.mean[i]),
        in.rstd.data<float>()[i] = static_cast<float>(s.rstd[i]);
    }
    const Tensor sums = Tensor::Zeros({2, c}, DType::kF64), back = Tensor::Zeros({2, c}, DType::kF64),
                 y = Tensor::Zeros(shape, t), dy = RandomTensor(shape, t, "dy"), dx = Tensor::Zeros(shape, t),
                 dresidual = Tensor::Zeros(shape, t), in_place = RandomTensor(shape, t, "dy");
    const auto count = static_cast<double>(in.x.size() / c);
    ops::BatchNormSums(h.ctx, in.x, sums);
    ops::BatchNormFwd(h.ctx, in, y);
    ops::BatchNormBwdSums(h.ctx, dy, in, back);
    ops::BatchNormBwdInput(h.ctx, dy, in, back, count, dx, dresidual);
    ops::BatchNormBwdInput(h.ctx, in_place, in, back, count, in_place, Tensor());
    const auto grads = reference::BatchNormBackward(norm, ToDoubles(dy));
    Values want_sums = s.sum, want_back = grads.dbias;
    want_sums.insert(want_sums.end(), s.squares.begin(), s.squares.end());
    want_back.insert(want_back.end(), grads.dweight.begin(), grads.dweight.end());
    ops::BatchNormFwd(h.ctx, in, in.x);
    return {{"sums", sums, want_sums},
            {"y", y, reference::BatchNormForward(norm)},
            {"y in place", in.x, ToDoubles(y)},
            {"backward sums", back, want_back},
            {"dx", dx, grads.dx},
            {"dx in place", in_place, ToDoubles(dx)},
            {"dresidual", dresidual, grads.dresidual}};
  };
}

Row MaxPoolRow(reference::Pool v) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({v.n, v.h, v.w, v.c}, t, "x"), dx = RandomTensor(x.shape(), t, "dx");
    const Tensor y = Tensor::Zeros({v.n, v.p(), v.q(), v.c}, t), dy = RandomTensor(y.shape(), t, "dy"),
                 argmax = Tensor::Zeros(y.shape(), DType::kU8);
    const ops::PoolOptions options{v.size, v.stride, v.padding};
    ops::MaxPoolFwd(h.ctx, x, y, argmax, options);
    ops::MaxPoolBwd(h.ctx, dy, argmax, dx, options);
    return {{"y", y, reference::MaxPool(v, ToDoubles(x))},
            {"dx", dx, reference::MaxPoolBackward(v, ToDoubles(dy), ToDoubles(x))}};
  };
}

Row AvgPoolRow(reference::Pool v) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const Tensor x = RandomTensor({v.n, v.h, v.w, v.c}, t, "x"), dx = RandomTensor(x.shape(), t, "dx");
    const Tensor y = Tensor::Zeros({v.n, (v.h + 1) / 2, (v.w + 1) / 2, v.c}, t), dy = RandomTensor(y.shape(), t, "dy");
    ops::AvgPoolFwd(h.ctx, x, y);
    ops::AvgPoolBwd(h.ctx, dy, dx);
    return {{"y", y, reference::AvgPool(v, ToDoubles(x))}, {"dx", dx, reference::AvgPoolBackward(v, ToDoubles(dy))}};
  };
}

std::vector<Result> GlobalAvgPoolCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({5, 7, 3, 40}, t, "x"), y = Tensor::Zeros({5, 40}, t),
               dy = RandomTensor({5, 40}, t, "dy"), dx = Tensor::Zeros(x.shape(), t);
  Values want_y(y.size()), want_dx(x.size());
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t at = i / (21 * 40) * 40 + i % 40;
    want_y[at] += At(x, i) / 21;
    want_dx[i] = At(dy, at) / 21;
  }
  ops::GlobalAvgPoolFwd(h.ctx, x, y);
  ops::GlobalAvgPoolBwd(h.ctx, dy, dx);
  return {{"y", y, want_y}, {"dx", dx, want_dx}};
}

std::vector<Result> ActivationCase(OpHarness& h, DType t) {
  const Tensor x = RandomTensor({9001}, t, "x"), dy = RandomTensor({9001}, t, "dy");
  const auto zeros = [&] { return Tensor::Zeros({9001}, t); };
  const Tensor relu = zeros(), drelu = zeros(), sigmoid = zeros(), dsigmoid = zeros();
  ops::ReluFwd(h.ctx, x, relu);
  ops::ReluBwd(h.ctx, dy, relu, drelu);
  ops::SigmoidFwd(h.ctx, x, sigmoid);
  ops::SigmoidBwd(h.ctx, dy, sigmoid, dsigmoid);
  Values want_relu(9001), want_drelu(9001), want_sigmoid(9001), want_dsigmoid(9001);
  for (int64_t i = 0; i < 9001; ++i) {
    want_relu[i] = std::max(At(x, i), 0.0);
    want_drelu[i] = At(x, i) > 0 ? At(dy, i) : 0;
    want_sigmoid[i] = 1 / (1 + std::exp(-At(x, i)));
    want_dsigmoid[i] = At(dy, i) * At(sigmoid, i) * (1 - At(sigmoid, i));
  }
  ops::ReluFwd(h.ctx, x, x);
  return {{"relu", relu, want_relu},
          {"relu in place", x, want_relu},
          {"relu backward", drelu, want_drelu},
          {"sigmoid", sigmoid, want_sigmoid},
          {"sigmoid backward", dsigmoid, want_dsigmoid}};
}

Row ChannelScaleRow(Shape shape) {
  return [=](OpHarness& h, DType t) -> std::vector<Result> {
    const int64_t n = shape[0], c = shape[3], image = shape[1] * shape[2] * c;
    const Tensor x = RandomTensor(shape, t, "x"), dy = RandomTensor(shape, t, "dy"), s = RandomTensor({n, c}, t, "s");
    const Tensor y = Tensor::Zeros(shape, t), dx = Tensor::Zeros(shape, t), ds = Tensor::Zeros({n, c}, t);
    Values want_y(x.size()), want_dx(x.size()), want_ds(ds.size());
    for (int64_t i = 0; i < x.size(); ++i) {
      const int64_t at = i / image * c + i % c;
      want_y[i] = At(x, i) * At(s, at);
      want_dx[i] = At(dy, i) * At(s, at);
      want_ds[at] += At(dy, i) * At(x, i);
    }
    ops::ChannelScaleFwd(h.ctx, x, s, y);
    ops::ChannelScaleBwd(h.ctx, dy, x, s, dx, ds);
    ops::ChannelScaleBwd(h.ctx, dy, x, s, dy, ds);
    return {{"y", y, want_y}, {"dx", dx, want_dx}, {"dx in place", dy, want_dx}, {"ds", ds, want_ds}};
  };
}

// Whole samples are dropped, by their counters alone; the others are scaled.
std::vector<Result> DropPathCase(OpHarness& h, DType t) {
  constexpr int64_t kSamples = 400;
  const Tensor x = RandomTensor({kSamples, 3, 2, 5}, t, "x"), y = Tensor::Zeros(x.shape(), t),
               part = Tensor::Zeros(x.shape(), t), counters = Tensor::Zeros({kSamples}, DType::kI64);
  for (int64_t i = 0; i < kSamples; ++i) counters.data<int64_t>()[i] = 1000003 * i;
  const RngKey key{3, RngPurpose::kDropout, 5};
  ops::DropPath(h.ctx, x, 0.25f, key, counters, y);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 170}, {170, kSamples}})
    ops::DropPath(h.ctx, x.Rows(begin, end), 0.25f, key, counters.Rows(begin, end), part.Rows(begin, end));
  Values want(y.size());
  int64_t kept = 0;
  for (int64_t n = 0; n < kSamples; ++n) {
    const bool keep = At(y, n * 30) != 0;
    kept += keep;
    for (int64_t i = n * 30; i < (n + 1) * 30; ++i) want[i] = keep ? At(x, i) / 0.75 : 0;
  }
  EXPECT_NEAR(static_cast<double>(kept), 300, 40);
  return {{"scaled", y, want}, {"in two calls", part, ToDoubles(y)}};
}

struct ConvCase {
  std::string name;
  reference::Conv conv;
};
std::vector<ConvCase> ConvCases() {
  return {
      {"1x1", {.n = 3, .h = 5, .w = 7, .c = 20, .o = 35}},
      {"1x1_stride2", {.n = 2, .h = 7, .w = 6, .c = 17, .o = 33, .stride = 2}},
      {"3x3", {.n = 2, .h = 9, .w = 11, .c = 19, .o = 37, .kh = 3, .kw = 3, .padding = 1}},
      {"3x3_one_pixel", {.n = 9, .h = 1, .w = 1, .c = 40, .o = 70, .kh = 3, .kw = 3, .padding = 1}},
      {"3x3_four_pixels", {.n = 9, .h = 2, .w = 2, .c = 40, .o = 70, .kh = 3, .kw = 3, .padding = 1}},
      {"3x3_to_one_pixel", {.n = 5, .h = 2, .w = 2, .c = 16, .o = 64, .kh = 3, .kw = 3, .stride = 2, .padding = 1}},
      {"3x3_stride2", {.n = 2, .h = 8, .w = 9, .c = 16, .o = 48, .kh = 3, .kw = 3, .stride = 2, .padding = 1}},
      {"3x3_unpadded", {.n = 2, .h = 6, .w = 5, .c = 8, .o = 9, .kh = 3, .kw = 3}},
      {"3x3_stride3", {.n = 2, .h = 11, .w = 10, .c = 8, .o = 9, .kh = 3, .kw = 3, .stride = 3, .padding = 1}},
      {"7x7_stem", {.n = 2, .h = 21, .w = 20, .c = 3, .o = 64, .kh = 7, .kw = 7, .stride = 2, .padding = 3}},
      {"1x3", {.n = 2, .h = 6, .w = 9, .c = 5, .o = 6, .kh = 1, .kw = 3, .padding = 1}},
      {"groups2", {.n = 2, .h = 5, .w = 6, .c = 24, .o = 40, .kh = 3, .kw = 3, .padding = 1, .groups = 2}},
      {"groups2_1x1", {.n = 2, .h = 5, .w = 6, .c = 24, .o = 40, .groups = 2}},
      {"depthwise", {.n = 2, .h = 6, .w = 5, .c = 33, .o = 33, .kh = 3, .kw = 3, .padding = 1, .groups = 33}},
      {"one_image", {.n = 1, .h = 24, .w = 24, .c = 64, .o = 64, .kh = 3, .kw = 3, .padding = 1}},
      {"no_image", {.n = 0, .h = 8, .w = 8, .c = 16, .o = 16, .kh = 3, .kw = 3, .padding = 1}},
      {"wide_padding", {.n = 2, .h = 3, .w = 4, .c = 8, .o = 8, .kh = 3, .kw = 3, .padding = 4}},
  };
}

std::vector<ConvCase> WinogradCases() {
  return {
      {"even", {.n = 2, .h = 6, .w = 8, .c = 32, .o = 64, .kh = 3, .kw = 3, .padding = 1}},
      {"odd", {.n = 3, .h = 5, .w = 7, .c = 37, .o = 85, .kh = 3, .kw = 3, .padding = 1}},
      {"unpadded", {.n = 2, .h = 6, .w = 7, .c = 16, .o = 21, .kh = 3, .kw = 3, .padding = 0}},
      {"padding2", {.n = 2, .h = 4, .w = 5, .c = 19, .o = 16, .kh = 3, .kw = 3, .padding = 2}},
      {"one_pixel", {.n = 4, .h = 1, .w = 1, .c = 16, .o = 16, .kh = 3, .kw = 3, .padding = 1}},
      {"many_tiles", {.n = 3, .h = 17, .w = 16, .c = 24, .o = 130, .kh = 3, .kw = 3, .padding = 1}},
      {"no_image", {.n = 0, .h = 8, .w = 8, .c = 16, .o = 16, .kh = 3, .kw = 3, .padding = 1}},
  };
}

std::vector<OpRow> ImageRows() {
  std::vector<OpRow> rows;
  for (const ConvCase& c : ConvCases()) {
    rows.push_back({"conv_im2col_" + c.name, ConvRow(c.conv, ConvPath::kIm2col)});
    rows.push_back({"conv_taps_" + c.name, ConvRow(c.conv, ConvPath::kTaps)});
  }
  rows.push_back({"conv_matmul", ConvRow({.n = 3, .h = 5, .w = 7, .c = 20, .o = 35}, ConvPath::kMatmul)});
  rows.push_back({"conv_matmul_no_image", ConvRow({.n = 0, .h = 5, .w = 7, .c = 20, .o = 35}, ConvPath::kMatmul)});
  for (const ConvCase& c : WinogradCases())
    rows.push_back({"conv_winograd_" + c.name, ConvRow(c.conv, ConvPath::kWinograd)});
  for (const bool residual : {false, true}) {
    for (const Relu relu : {Relu::kNo, Relu::kYes}) {
      const std::string name =
          std::string("batch_norm") + (relu == Relu::kYes ? "_relu" : "") + (residual ? "_residual" : "");
      rows.push_back({name, BatchNormRow({3, 9, 7, 37}, relu, residual)});
    }
  }
  rows.push_back({"batch_norm_one_channel", BatchNormRow({700, 1}, Relu::kYes, true)});
  rows.push_back({"batch_norm_large", BatchNormRow({2, 60, 50, 64}, Relu::kYes, true)});
  rows.push_back({"max_pool", MaxPoolRow({.n = 3, .h = 12, .w = 11, .c = 21})});
  rows.push_back(
      {"max_pool_tight", MaxPoolRow({.n = 2, .h = 6, .w = 8, .c = 64, .size = 2, .stride = 2, .padding = 0})});
  rows.push_back(
      {"max_pool_gaps", MaxPoolRow({.n = 2, .h = 9, .w = 10, .c = 5, .size = 2, .stride = 3, .padding = 1})});
  rows.push_back({"max_pool_one_pixel", MaxPoolRow({.n = 2, .h = 1, .w = 1, .c = 64})});
  rows.push_back({"avg_pool", AvgPoolRow({.n = 2, .h = 6, .w = 8, .c = 21})});
  rows.push_back({"avg_pool_odd", AvgPoolRow({.n = 2, .h = 5, .w = 1, .c = 16})});
  rows.push_back({"global_avg_pool", GlobalAvgPoolCase});
  rows.push_back({"activations", ActivationCase});
  rows.push_back({"channel_scale", ChannelScaleRow({3, 5, 4, 37})});
  rows.push_back({"channel_scale_large", ChannelScaleRow({2, 30, 20, 64})});
  rows.push_back({"drop_path", DropPathCase});
  return rows;
}

class ImageOpTable : public OpTable {};

TEST_P(ImageOpTable, EqualsReferenceOnAnyNumberOfThreads) {
  ExpectEqualsReferenceOnAnyNumberOfThreads(std::get<0>(GetParam()), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(All, ImageOpTable,
                         testing::Combine(testing::ValuesIn(ImageRows()),
                                          testing::Values(DType::kF32, DType::kF64, DType::kBF16)),
                         OpTableName);

}  // namespace
}  // namespace shoal
