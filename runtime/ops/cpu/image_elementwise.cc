// ReLU, sigmoid, squeeze-and-excitation's product, stochastic depth: one pass each.
#include "runtime/ops/cpu/image_kernels.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/image_ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ForRuns;
using cpu::ImageKernels;
using cpu::kRun;
using cpu::ScratchSlot;

// y = kernel(x); the kernel is a member of ImageKernels.
template <class T>
void Unary(OpContext& ctx, void (*kernel)(const Arithmetic<T>*, int64_t, Arithmetic<T>*), const Tensor& x,
           const Tensor& y) {
  ForRuns(ctx, x.size(), [&](int64_t begin, int64_t n) {
    auto* out = cpu::WriteRow(y.data<T>() + begin, n, ScratchSlot::kRow1);
    kernel(cpu::ReadRow(x.data<T>() + begin, n, ScratchSlot::kRow0), n, out);
    cpu::StoreRow(out, n, y.data<T>() + begin);
  });
}
template <class T>
void Binary(OpContext& ctx, void (*kernel)(const Arithmetic<T>*, const Arithmetic<T>*, int64_t, Arithmetic<T>*),
            const Tensor& a, const Tensor& b, const Tensor& out) {
  ForRuns(ctx, a.size(), [&](int64_t begin, int64_t n) {
    auto* to = cpu::WriteRow(out.data<T>() + begin, n, ScratchSlot::kRow2);
    kernel(cpu::ReadRow(a.data<T>() + begin, n, ScratchSlot::kRow0),
           cpu::ReadRow(b.data<T>() + begin, n, ScratchSlot::kRow1), n, to);
    cpu::StoreRow(to, n, out.data<T>() + begin);
  });
}

double Bytes(const Tensor& t, double times) { return times * static_cast<double>(t.bytes()); }

// Calls fn(image, first pixel of it, pixels) for blocks of pixels that fit in the first-level cache.
template <class F>
void ForPixels(OpContext& ctx, const Tensor& x, F fn) {
  const int64_t c = x.dim(3), pixels = x.dim(1) * x.dim(2);
  const int64_t rows = std::max<int64_t>(1, kRun / std::max<int64_t>(1, c)), blocks = (pixels + rows - 1) / rows;
  ctx.pool->ParallelFor(x.dim(0) * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * rows;
      fn(i / blocks, first, std::min(rows, pixels - first));
    }
  });
}

template <class T>
void ScaleImage(OpContext& ctx, const Tensor& x, const Tensor& s, const Tensor& y) {
  const int64_t c = x.dim(3), pixels = x.dim(1) * x.dim(2);
  const auto& kernels = ImageKernels<Arithmetic<T>>::Get();
  ForPixels(ctx, x, [&](int64_t n, int64_t first, int64_t rows) {
    const int64_t at = (n * pixels + first) * c, count = rows * c;
    auto* out = cpu::WriteRow(y.data<T>() + at, count, ScratchSlot::kRow2);
    kernels.channel_scale(cpu::ReadRow(x.data<T>() + at, count, ScratchSlot::kRow0),
                          cpu::ReadRow(s.data<T>() + n * c, c, ScratchSlot::kRow1), rows, c, out);
    cpu::StoreRow(out, count, y.data<T>() + at);
  });
}

void CheckScale(const Tensor& x, const Tensor& s, const Tensor& y) {
  CHECK(x.rank() == 4 && x.SameShape(y) && s.rank() == 2 && s.dim(0) == x.dim(0) && s.dim(1) == x.dim(3))
      << "channel scale of " << ShapeString(x.shape()) << " by " << ShapeString(s.shape());
}

}  // namespace

void ReluFwd(OpContext& ctx, const Tensor& x, const Tensor& y) {
  CHECK(x.SameShape(y)) << "ReluFwd " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, Bytes(y, 2));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    Unary<T>(ctx, ImageKernels<Arithmetic<T>>::Get().relu, x, y);
  });
}

void ReluBwd(OpContext& ctx, const Tensor& dy, const Tensor& y, const Tensor& dx) {
  CHECK(y.SameShape(dy) && y.SameShape(dx)) << "ReluBwd of " << ShapeString(dy.shape());
  const cpu::OpScope scope(ctx, dx, Bytes(dx, 3));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    Binary<T>(ctx, ImageKernels<Arithmetic<T>>::Get().relu_back, dy, y, dx);
  });
}

void SigmoidFwd(OpContext& ctx, const Tensor& x, const Tensor& y) {
  CHECK(x.SameShape(y)) << "SigmoidFwd " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, Bytes(y, 2));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    Unary<T>(ctx, ImageKernels<Arithmetic<T>>::Get().sigmoid, x, y);
  });
}

void SigmoidBwd(OpContext& ctx, const Tensor& dy, const Tensor& y, const Tensor& dx) {
  CHECK(y.SameShape(dy) && y.SameShape(dx)) << "SigmoidBwd of " << ShapeString(dy.shape());
  const cpu::OpScope scope(ctx, dx, Bytes(dx, 3));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    Binary<T>(ctx, ImageKernels<Arithmetic<T>>::Get().sigmoid_back, dy, y, dx);
  });
}

void ChannelScaleFwd(OpContext& ctx, const Tensor& x, const Tensor& s, const Tensor& y) {
  CheckScale(x, s, y);
  const cpu::OpScope scope(ctx, y, Bytes(y, 2));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) { ScaleImage<decltype(type)>(ctx, x, s, y); });
}

void ChannelScaleBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& s, const Tensor& dx,
                     const Tensor& ds) {
  CheckScale(x, s, dy);
  CHECK(dx.SameShape(dy) && ds.SameShape(s)) << "ChannelScaleBwd into " << ShapeString(dx.shape());
  const cpu::OpScope scope(ctx, dx, Bytes(dx, 3));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    const int64_t c = x.dim(3), pixels = x.dim(1) * x.dim(2),
                  rows = std::max<int64_t>(1, kRun / std::max<int64_t>(1, c));
    // One task an image, which sums its pixels in order; a block's dx is written while its dy is at hand.
    ctx.pool->ParallelFor(x.dim(0), cpu::RowGrain(pixels * c), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        double* sums = cpu::Scratch<double>(ScratchSlot::kTile0, c);
        std::fill_n(sums, c, 0.0);
        const A* scale = cpu::ReadRow(s.data<T>() + n * c, c, ScratchSlot::kTile1);
        for (int64_t first = 0; first < pixels; first += rows) {
          const int64_t at = (n * pixels + first) * c, block = std::min(rows, pixels - first), count = block * c;
          const A* g = cpu::ReadRow(dy.data<T>() + at, count, ScratchSlot::kRow0);
          kernels.channel_dots(g, cpu::ReadRow(x.data<T>() + at, count, ScratchSlot::kRow1), block, c, sums);
          A* out = cpu::WriteRow(dx.data<T>() + at, count, ScratchSlot::kRow2);
          kernels.channel_scale(g, scale, block, c, out);
          cpu::StoreRow(out, count, dx.data<T>() + at);
        }
        for (int64_t i = 0; i < c; ++i) ds.data<T>()[n * c + i] = static_cast<T>(static_cast<A>(sums[i]));
      }
    });
  });
}

void DropPath(OpContext& ctx, const Tensor& x, float rate, const RngKey& key, const Tensor& sample_counters,
              const Tensor& y) {
  CHECK(x.SameShape(y)) << "DropPath " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  CHECK(rate >= 0 && rate < 1) << "stochastic depth's rate " << rate << "; it lies in [0, 1)";
  const cpu::OpScope scope(ctx, y, Bytes(y, 2));
  if (scope.counted()) return;
  CHECK_EQ(sample_counters.size(), x.dim(0)) << "one counter per sample";
  if (x.size() == 0) return;
  const Rng rng(key);
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t size = x.size() / x.dim(0);
    const A scale = A(1) / (A(1) - static_cast<A>(rate));
    for (int64_t n = 0; n < x.dim(0); ++n) {
      const bool dropped = rng.Uniform(static_cast<uint64_t>(sample_counters.data<int64_t>()[n]), 0) < rate;
      ForRuns(ctx, size, [&](int64_t begin, int64_t count) {
        T* to = y.data<T>() + n * size + begin;
        if (dropped) {
          std::fill_n(to, count, T());
          return;
        }
        const A* from = cpu::ReadRow(x.data<T>() + n * size + begin, count, ScratchSlot::kRow0);
        A* out = cpu::WriteRow(to, count, ScratchSlot::kRow1);
        if (out != from) std::copy_n(from, count, out);
        cpu::ScaleRow(out, count, scale);
        cpu::StoreRow(out, count, to);
      });
    }
  });
}

}  // namespace shoal::ops
