// Conv2dFwd, Conv2dBwdInput, Conv2dBwdWeight: checks and workspace.
#include "runtime/ops/cpu/conv_im2col.h"
#include "runtime/ops/cpu/conv_taps.h"
#include "runtime/ops/cpu/conv_winograd.h"
#include "runtime/ops/image_ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ConvShape;

ConvShape ShapeOf(const Shape& x, const Shape& weight, const Conv2dOptions& o) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .o = weight[0],
          .kh = weight[1],
          .kw = weight[2],
          .p = ConvExtent(x[1], weight[1], o.stride, o.padding),
          .q = ConvExtent(x[2], weight[2], o.stride, o.padding),
          .stride = o.stride,
          .padding = o.padding,
          .groups = o.groups};
}

ConvShape ShapeOf(const Tensor& x, const Tensor& weight, const Tensor& y, const Conv2dOptions& o) {
  CHECK(x.rank() == 4 && weight.rank() == 4 && y.rank() == 4) << "convolution of " << ShapeString(x.shape());
  CHECK(o.stride >= 1 && o.padding >= 0 && o.groups >= 1 && x.dim(3) % o.groups == 0 && weight.dim(0) % o.groups == 0)
      << "convolution of " << x.dim(3) << " to " << weight.dim(0) << " channels: stride " << o.stride << ", padding "
      << o.padding << ", groups " << o.groups;
  const ConvShape s = ShapeOf(x.shape(), weight.shape(), o);
  CHECK(weight.dim(3) == s.group_c() && y.dim(0) == s.n && y.dim(3) == s.o && y.dim(1) == s.p && y.dim(2) == s.q)
      << "convolution of " << ShapeString(x.shape()) << " with " << ShapeString(weight.shape()) << " into "
      << ShapeString(y.shape());
  return s;
}

double Bytes(const Tensor& a, const Tensor& b, const Tensor& c) {
  return static_cast<double>(a.bytes() + b.bytes() + c.bytes());
}

bool Serves(const ConvShape& s, DType dtype, ConvPath path) {
  switch (path) {
    case ConvPath::kAuto:
    case ConvPath::kIm2col:
      return true;
    case ConvPath::kMatmul:
      return s.taps() == 1 && s.stride == 1 && s.padding == 0 && s.groups == 1;
    case ConvPath::kTaps:
      return dtype != DType::kF64;
    case ConvPath::kWinograd:
      return dtype != DType::kF64 && cpu::WinogradServes(s);
  }
  return false;
}

// The choice follows `shoal bench conv`.
ConvPath Choose(const ConvShape& s, DType dtype, ConvPath wanted, Direction direction) {
  constexpr int64_t kFewChannels = 16;
  CHECK(Serves(s, dtype, wanted)) << "no convolution of " << DTypeName(dtype) << " in way " << static_cast<int>(wanted);
  if (wanted != ConvPath::kAuto) return wanted;
  if (Serves(s, dtype, ConvPath::kMatmul)) return ConvPath::kMatmul;
  if (Serves(s, dtype, ConvPath::kWinograd) && cpu::WinogradPays(s)) return ConvPath::kWinograd;
  if (direction == Direction::kBackward && s.group_c() < kFewChannels) return ConvPath::kIm2col;
  return Serves(s, dtype, ConvPath::kTaps) ? ConvPath::kTaps : ConvPath::kIm2col;
}

// [pixels, channels] of images, [o, c] of a 1x1 weight.
Tensor Matrix(const Tensor& t) { return t.View({t.dim(0) * t.dim(1) * t.dim(2), t.dim(3)}); }

// bf16 operands are widened into the workspace and results narrowed from there: the sums are of fp32.
class Widened {
 public:
  Widened(OpContext& ctx, Arena& workspace) : quiet_{.pool = ctx.pool}, workspace_(workspace) {}
  Tensor Read(const Tensor& t) {
    if (t.dtype() != DType::kBF16) return t;
    const Tensor wide = workspace_.Live(t.shape(), DType::kF32);
    if (!t.meta()) Copy(quiet_, t, wide);
    return wide;
  }
  Tensor Write(const Tensor& t) { return t.dtype() == DType::kBF16 ? workspace_.Live(t.shape(), DType::kF32) : t; }
  void Store(const Tensor& wide, const Tensor& t) {
    if (t.dtype() == DType::kBF16 && !t.meta()) Copy(quiet_, wide, t);
  }

 private:
  OpContext quiet_;  // conversions are part of the op that reports
  Arena& workspace_;
};

}  // namespace

int64_t ConvExtent(int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
  return in + 2 * padding < kernel ? 0 : (in + 2 * padding - kernel) / stride + 1;
}

bool ConvServes(const Shape& x, const Shape& weight, DType dtype, const Conv2dOptions& options) {
  return Serves(ShapeOf(x, weight, options), dtype, options.path);
}

void Conv2dFwd(OpContext& ctx, Arena& workspace, const Tensor& x, const Tensor& weight, const Tensor& y,
               const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(x, weight, y, options);
  const cpu::OpScope scope(ctx, y, s.flops(), Bytes(x, weight, y));
  const ConvPath path = Choose(s, y.dtype(), options.path, Direction::kForward);
  if (path == ConvPath::kMatmul) {
    OpContext quiet{.pool = ctx.pool};
    if (!scope.counted()) Matmul(quiet, Matrix(x), Matrix(weight), Matrix(y), {.transpose_b = Transpose::kYes});
    return;
  }
  Widened widened(ctx, workspace);
  const Tensor w = widened.Read(weight);
  if (path == ConvPath::kIm2col) {
    if (scope.counted()) return;
    return cpu::ByFloatType(y.dtype(), [&](auto type) {
      using T = decltype(type);
      cpu::Im2colFwd<T>(*ctx.pool, s, x.data<T>(), w.data<Arithmetic<T>>(), y.data<T>());
    });
  }
  const Tensor from = widened.Read(x), to = widened.Write(y);
  Tensor transformed;
  if (path == ConvPath::kWinograd) transformed = workspace.Live({cpu::WinogradWeightSize(s.o, s.c)}, DType::kF32);
  if (scope.counted()) return;
  if (path == ConvPath::kWinograd) {
    cpu::WinogradFwd(*ctx.pool, s, from.data<float>(), w.data<float>(), transformed.data<float>(), to.data<float>());
  } else {
    cpu::TapsFwd(*ctx.pool, s, from.data<float>(), w.data<float>(), to.data<float>());
  }
  widened.Store(to, y);
}

void Conv2dBwdInput(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& weight, const Tensor& dx,
                    const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(dx, weight, dy, options);
  const cpu::OpScope scope(ctx, dx, s.flops(), Bytes(dx, weight, dy));
  const ConvPath path = Choose(s, dx.dtype(), options.path, Direction::kBackward);
  if (path == ConvPath::kMatmul) {
    OpContext quiet{.pool = ctx.pool};
    if (!scope.counted()) Matmul(quiet, Matrix(dy), Matrix(weight), Matrix(dx));
    return;
  }
  Widened widened(ctx, workspace);
  const Tensor w = widened.Read(weight);
  if (path == ConvPath::kIm2col) {
    if (scope.counted()) return;
    return cpu::ByFloatType(dx.dtype(), [&](auto type) {
      using T = decltype(type);
      cpu::Im2colBwdInput<T>(*ctx.pool, s, dy.data<T>(), w.data<Arithmetic<T>>(), dx.data<T>());
    });
  }
  const Tensor from = widened.Read(dy), to = widened.Write(dx);
  Tensor transformed;
  if (path == ConvPath::kWinograd) transformed = workspace.Live({cpu::WinogradWeightSize(s.c, s.o)}, DType::kF32);
  if (scope.counted()) return;
  if (path == ConvPath::kWinograd) {
    cpu::WinogradBwdInput(*ctx.pool, s, from.data<float>(), w.data<float>(), transformed.data<float>(),
                          to.data<float>());
  } else {
    cpu::TapsBwdInput(*ctx.pool, s, from.data<float>(), w.data<float>(), to.data<float>());
  }
  widened.Store(to, dx);
}

void Conv2dBwdWeight(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                     Accumulate accumulate, const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(x, dweight, dy, options);
  const cpu::OpScope scope(ctx, dy, s.flops(), Bytes(x, dweight, dy));
  const ConvPath path = Choose(s, dy.dtype(), options.path, Direction::kBackward);
  if (path == ConvPath::kMatmul) {
    OpContext quiet{.pool = ctx.pool};
    if (!scope.counted())
      Matmul(quiet, Matrix(dy), Matrix(x), Matrix(dweight), {.transpose_a = Transpose::kYes, .accumulate = accumulate});
    return;
  }
  const int64_t slices = path == ConvPath::kIm2col     ? cpu::Im2colSlices(s)
                         : path == ConvPath::kWinograd ? cpu::WinogradSlices(s)
                                                       : cpu::TapsSlices(s);
  const Tensor partial = workspace.Live({slices - 1, s.o, s.depth()}, dweight.dtype());
  if (path == ConvPath::kIm2col) {
    if (scope.counted()) return;
    return cpu::ByFloatType(dy.dtype(), [&](auto type) {
      using T = decltype(type);
      using A = Arithmetic<T>;
      cpu::Im2colBwdWeight<T>(*ctx.pool, s, dy.data<T>(), x.data<T>(), partial.data<A>(), accumulate,
                              dweight.data<A>());
    });
  }
  Widened widened(ctx, workspace);
  const Tensor wide_dy = widened.Read(dy), wide_x = widened.Read(x);
  if (scope.counted()) return;
  const auto compute = path == ConvPath::kWinograd ? cpu::WinogradBwdWeight : cpu::TapsBwdWeight;
  compute(*ctx.pool, s, wide_dy.data<float>(), wide_x.data<float>(), partial.data<float>(), accumulate,
          dweight.data<float>());
}

}  // namespace shoal::ops
