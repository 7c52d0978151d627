// Conv2dFwd, Conv2dBwdInput, Conv2dBwdWeight: checks and workspace.
#include "runtime/ops/cpu/conv_im2col.h"
#include "runtime/ops/image_ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ConvShape;

ConvShape ShapeOf(const Tensor& x, const Tensor& weight, const Tensor& y, const Conv2dOptions& o) {
  CHECK(x.rank() == 4 && weight.rank() == 4 && y.rank() == 4) << "convolution of " << ShapeString(x.shape());
  const ConvShape s{x.dim(0),      x.dim(1), x.dim(2), x.dim(3), weight.dim(0), weight.dim(1),
                    weight.dim(2), y.dim(1), y.dim(2), o.stride, o.padding,     o.groups};
  CHECK(o.stride >= 1 && o.padding >= 0 && o.groups >= 1 && s.c % o.groups == 0 && s.o % o.groups == 0)
      << "convolution of " << s.c << " to " << s.o << " channels: stride " << o.stride << ", padding " << o.padding
      << ", groups " << o.groups;
  CHECK(weight.dim(3) == s.group_c() && y.dim(0) == s.n && y.dim(3) == s.o &&
        s.p == ConvExtent(s.h, s.kh, s.stride, s.padding) && s.q == ConvExtent(s.w, s.kw, s.stride, s.padding))
      << "convolution of " << ShapeString(x.shape()) << " with " << ShapeString(weight.shape()) << " into "
      << ShapeString(y.shape());
  return s;
}

double Bytes(const Tensor& a, const Tensor& b, const Tensor& c) {
  return static_cast<double>(a.bytes() + b.bytes() + c.bytes());
}

// The weight in the arithmetic type: itself, or a copy in the workspace.
Tensor WideWeight(OpContext& ctx, Arena& workspace, const Tensor& weight) {
  if (weight.dtype() != DType::kBF16) return weight;
  const Tensor wide = workspace.Live(weight.shape(), DType::kF32);
  if (!wide.meta()) Copy(ctx, weight, wide);
  return wide;
}

}  // namespace

int64_t ConvExtent(int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
  return in + 2 * padding < kernel ? 0 : (in + 2 * padding - kernel) / stride + 1;
}

void Conv2dFwd(OpContext& ctx, Arena& workspace, const Tensor& x, const Tensor& weight, const Tensor& y,
               const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(x, weight, y, options);
  const cpu::OpScope scope(ctx, y, s.flops(), Bytes(x, weight, y));
  const Tensor wide = WideWeight(ctx, workspace, weight);
  if (scope.counted()) return;
  cpu::ByFloatType(y.dtype(), [&](auto type) {
    using T = decltype(type);
    cpu::Im2colFwd<T>(*ctx.pool, s, x.data<T>(), wide.data<Arithmetic<T>>(), y.data<T>());
  });
}

void Conv2dBwdInput(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& weight, const Tensor& dx,
                    const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(dx, weight, dy, options);
  const cpu::OpScope scope(ctx, dx, s.flops(), Bytes(dx, weight, dy));
  const Tensor wide = WideWeight(ctx, workspace, weight);
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    cpu::Im2colBwdInput<T>(*ctx.pool, s, dy.data<T>(), wide.data<Arithmetic<T>>(), dx.data<T>());
  });
}

void Conv2dBwdWeight(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                     Accumulate accumulate, const Conv2dOptions& options) {
  const ConvShape s = ShapeOf(x, dweight, dy, options);
  const cpu::OpScope scope(ctx, dy, s.flops(), Bytes(x, dweight, dy));
  const Tensor partial = workspace.Live({cpu::Im2colSlices(s) - 1, s.o, s.depth()}, dweight.dtype());
  if (scope.counted()) return;
  cpu::ByFloatType(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    cpu::Im2colBwdWeight<T>(*ctx.pool, s, dy.data<T>(), x.data<T>(), partial.data<A>(), accumulate, dweight.data<A>());
  });
}

}  // namespace shoal::ops
