// BatchNormSums, BatchNormFwd, BatchNormBwdSums, BatchNormBwdInput.
#include <vector>

#include "runtime/ops/cpu/image_kernels.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/image_ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ImageKernels;
using cpu::NormBlock;
using cpu::ScratchSlot;

int64_t Channels(const Tensor& x) { return x.dim(-1); }
int64_t Pixels(const Tensor& x) { return Channels(x) == 0 ? 0 : x.size() / Channels(x); }

// Pixels of one inner call: what they touch stays in the first-level cache.
int64_t BlockRows(int64_t c) { return std::max<int64_t>(4, 4096 / std::max<int64_t>(1, c) / 4 * 4); }

// Calls fn(first pixel, pixels) for blocks of pixels, over the pool.
template <class F>
void ForBlocks(OpContext& ctx, int64_t pixels, int64_t c, F fn) {
  const int64_t rows = BlockRows(c);
  ctx.pool->ParallelFor((pixels + rows - 1) / rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i * rows, std::min(rows, pixels - i * rows));
  });
}

// sums = sum over blocks of fn(first pixel, pixels, partial sums). How pixels are cut depends on the shape only, and
// partial sums are added in order.
template <class F>
void SumBlocks(OpContext& ctx, int64_t pixels, int64_t c, const Tensor& sums, F fn) {
  constexpr int64_t kMost = 64;
  const int64_t rows = BlockRows(c), blocks = (pixels + rows - 1) / rows;
  const int64_t pieces = std::min(kMost, blocks), width = 2 * c;
  std::vector<double> partial(static_cast<size_t>(pieces * width));
  ctx.pool->Run(pieces, [&](int64_t piece) {
    for (int64_t i = blocks * piece / pieces; i < blocks * (piece + 1) / pieces; ++i)
      fn(i * rows, std::min(rows, pixels - i * rows), &partial[static_cast<size_t>(piece * width)]);
  });
  double* out = sums.data<double>();
  std::fill_n(out, width, 0.0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t i = 0; i < width; ++i) out[i] += partial[static_cast<size_t>(piece * width + i)];
  }
}

// Per-channel factors in the arithmetic type, from statistics and parameters of any float type.
template <class A>
class Coefficients {
 public:
  explicit Coefficients(const BatchNormInputs& in) : c_(Channels(in.x)), values_(static_cast<size_t>(6 * c_)) {
    for (int64_t i = 0; i < c_; ++i) {
      const double mean = Value(in.mean, i), rstd = Value(in.rstd, i), scale = Value(in.weight, i) * rstd;
      Row(0)[i] = static_cast<A>(scale);
      Row(1)[i] = static_cast<A>(Value(in.bias, i) - mean * scale);
      Row(2)[i] = static_cast<A>(mean);
      Row(3)[i] = static_cast<A>(rstd);
    }
  }
  void SetSums(const double* sums, double count) {
    for (int64_t i = 0; i < c_; ++i) {
      Row(4)[i] = static_cast<A>(sums[i] / count);
      Row(5)[i] = static_cast<A>(static_cast<double>(Row(3)[i]) * sums[c_ + i] / count);
    }
  }
  NormBlock<A> Block(const A* x, const A* residual, int64_t rows, Relu relu) {
    return {x, residual, Row(0), Row(1), Row(2), Row(3), rows, c_, relu == Relu::kYes};
  }
  const A* offset() { return Row(4); }
  const A* slope() { return Row(5); }

 private:
  static double Value(const Tensor& t, int64_t i) {
    double value = 0;
    cpu::ByFloatType(t.dtype(), [&](auto type) {
      value = static_cast<double>(static_cast<Arithmetic<decltype(type)>>(t.data<decltype(type)>()[i]));
    });
    return value;
  }
  A* Row(int64_t r) { return &values_[static_cast<size_t>(r * c_)]; }
  int64_t c_;
  std::vector<A> values_;
};

void Check(const BatchNormInputs& in) {
  const int64_t c = Channels(in.x);
  for (const Tensor* t : {&in.mean, &in.rstd, &in.weight, &in.bias})
    CHECK_EQ(t->size(), c) << "batch norm over " << c << " channels";
  CHECK(!in.residual.defined() || in.residual.SameShape(in.x)) << "residual " << ShapeString(in.residual.shape());
}

double DefinedBytes(const Tensor& t, double times) { return t.defined() ? times * static_cast<double>(t.bytes()) : 0; }

// The block of `in` at a pixel as arithmetic values.
template <class T>
NormBlock<Arithmetic<T>> ReadBlock(const BatchNormInputs& in, Coefficients<Arithmetic<T>>& coefficients, int64_t first,
                                   int64_t rows) {
  const int64_t c = Channels(in.x), at = first * c, n = rows * c;
  const auto* x = cpu::ReadRow(in.x.data<T>() + at, n, ScratchSlot::kRow0);
  const Arithmetic<T>* residual = nullptr;
  if (in.residual.defined()) residual = cpu::ReadRow(in.residual.data<T>() + at, n, ScratchSlot::kRow1);
  return coefficients.Block(x, residual, rows, in.relu);
}

}  // namespace

void BatchNormSums(OpContext& ctx, const Tensor& x, const Tensor& sums) {
  const int64_t c = Channels(x);
  CHECK_EQ(sums.size(), 2 * c) << "BatchNormSums of " << ShapeString(x.shape());
  const cpu::OpScope scope(ctx, x, DefinedBytes(x, 1));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto& kernels = ImageKernels<Arithmetic<T>>::Get();
    SumBlocks(ctx, Pixels(x), c, sums, [&](int64_t first, int64_t rows, double* partial) {
      kernels.channel_sums(cpu::ReadRow(x.data<T>() + first * c, rows * c, ScratchSlot::kRow0), rows, c, partial);
    });
  });
}

void BatchNormFwd(OpContext& ctx, const BatchNormInputs& in, const Tensor& y) {
  Check(in);
  CHECK(y.SameShape(in.x)) << "BatchNormFwd into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, DefinedBytes(y, 2) + DefinedBytes(in.residual, 1));
  if (scope.counted()) return;
  cpu::ByFloatType(y.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    Coefficients<A> coefficients(in);
    const int64_t c = Channels(y);
    ForBlocks(ctx, Pixels(y), c, [&](int64_t first, int64_t rows) {
      T* to = y.data<T>() + first * c;
      A* out = cpu::WriteRow(to, rows * c, ScratchSlot::kRow2);
      kernels.norm(ReadBlock<T>(in, coefficients, first, rows), out);
      cpu::StoreRow(out, rows * c, to);
    });
  });
}

void BatchNormBwdSums(OpContext& ctx, const Tensor& dy, const BatchNormInputs& in, const Tensor& sums) {
  Check(in);
  const int64_t c = Channels(in.x);
  CHECK(dy.SameShape(in.x) && sums.size() == 2 * c) << "BatchNormBwdSums of " << ShapeString(dy.shape());
  const cpu::OpScope scope(ctx, dy, DefinedBytes(dy, 2) + DefinedBytes(in.residual, 1));
  if (scope.counted()) return;
  cpu::ByFloatType(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    Coefficients<A> coefficients(in);
    SumBlocks(ctx, Pixels(dy), c, sums, [&](int64_t first, int64_t rows, double* partial) {
      const A* g = cpu::ReadRow(dy.data<T>() + first * c, rows * c, ScratchSlot::kRow2);
      kernels.norm_back_sums(g, ReadBlock<T>(in, coefficients, first, rows), partial);
    });
  });
}

void BatchNormBwdInput(OpContext& ctx, const Tensor& dy, const BatchNormInputs& in, const Tensor& sums, double count,
                       const Tensor& dx, const Tensor& dresidual) {
  Check(in);
  CHECK(dy.SameShape(in.x) && dx.SameShape(in.x)) << "BatchNormBwdInput of " << ShapeString(dy.shape());
  CHECK(!dresidual.defined() || dresidual.SameShape(dx)) << "residual's gradient " << ShapeString(dresidual.shape());
  const cpu::OpScope scope(ctx, dx, DefinedBytes(dx, 3) + DefinedBytes(in.residual, 1) + DefinedBytes(dresidual, 1));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    Coefficients<A> coefficients(in);
    coefficients.SetSums(sums.data<double>(), count);
    const int64_t c = Channels(dx);
    ForBlocks(ctx, Pixels(dx), c, [&](int64_t first, int64_t rows) {
      const int64_t at = first * c, n = rows * c;
      const A* g = cpu::ReadRow(dy.data<T>() + at, n, ScratchSlot::kRow2);
      A* to = cpu::WriteRow(dx.data<T>() + at, n, ScratchSlot::kTile0);
      A* through = dresidual.defined() ? cpu::WriteRow(dresidual.data<T>() + at, n, ScratchSlot::kTile1) : nullptr;
      kernels.norm_back(g, ReadBlock<T>(in, coefficients, first, rows), coefficients.offset(), coefficients.slope(), to,
                        through);
      cpu::StoreRow(to, n, dx.data<T>() + at);
      if (through != nullptr) cpu::StoreRow(through, n, dresidual.data<T>() + at);
    });
  });
}

}  // namespace shoal::ops
