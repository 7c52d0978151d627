// Max-pooling, 2x2 mean pooling, mean over the whole image.
#include <limits>
#include <vector>

#include "runtime/ops/cpu/image_kernels.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/image_ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ImageKernels;
using cpu::ScratchSlot;

// Calls fn(n, row) for every row of every image, over the pool.
template <class F>
void ForRows(OpContext& ctx, const Tensor& t, F fn) {
  const int64_t rows = t.dim(1);
  ctx.pool->ParallelFor(t.dim(0) * rows, cpu::RowGrain(t.dim(2) * t.dim(3)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i / rows, i % rows);
  });
}

template <class T>
T* Pixel(const Tensor& t, int64_t n, int64_t row, int64_t column) {
  return t.data<T>() + ((n * t.dim(1) + row) * t.dim(2) + column) * t.dim(3);
}

struct Range {
  int64_t begin, end;
};
// Windows along one axis of `out` windows that hold pixel `at`.
Range WindowsOf(int64_t at, int64_t out, const PoolOptions& o) {
  const int64_t first = at + o.padding - o.size + 1;
  return {first <= 0 ? 0 : (first + o.stride - 1) / o.stride, std::min(out, (at + o.padding) / o.stride + 1)};
}

void CheckPool(const Tensor& in, const Tensor& out, const Tensor& argmax, const PoolOptions& o) {
  CHECK(o.size >= 1 && o.size <= 15 && o.stride >= 1 && o.padding >= 0 && o.padding < o.size)
      << "pooling of size " << o.size << ", stride " << o.stride << ", padding " << o.padding;
  CHECK(in.rank() == 4 && out.rank() == 4 && out.SameShape(argmax) && in.dim(0) == out.dim(0) &&
        in.dim(3) == out.dim(3) && out.dim(1) == ConvExtent(in.dim(1), o.size, o.stride, o.padding) &&
        out.dim(2) == ConvExtent(in.dim(2), o.size, o.stride, o.padding))
      << "pooling of " << ShapeString(in.shape()) << " into " << ShapeString(out.shape());
}

// The pixels of 2x2 windows along one axis.
Range PairOf(int64_t window, int64_t extent) { return {2 * window, std::min(extent, 2 * window + 2)}; }

void CheckAvgPool(const Tensor& in, const Tensor& out) {
  CHECK(in.rank() == 4 && out.rank() == 4 && in.dim(0) == out.dim(0) && in.dim(3) == out.dim(3) &&
        out.dim(1) == (in.dim(1) + 1) / 2 && out.dim(2) == (in.dim(2) + 1) / 2)
      << "2x2 mean of " << ShapeString(in.shape()) << " into " << ShapeString(out.shape());
}

void CheckGlobal(const Tensor& image, const Tensor& mean) {
  CHECK(image.rank() == 4 && mean.rank() == 2 && image.dim(0) == mean.dim(0) && image.dim(3) == mean.dim(1))
      << "mean over pixels of " << ShapeString(image.shape()) << " in " << ShapeString(mean.shape());
}

double Bytes(const Tensor& a, const Tensor& b) { return static_cast<double>(a.bytes() + b.bytes()); }

}  // namespace

void MaxPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y, const Tensor& argmax, const PoolOptions& o) {
  CheckPool(x, y, argmax, o);
  const cpu::OpScope scope(ctx, y, Bytes(x, y) + static_cast<double>(argmax.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    const int64_t h = x.dim(1), w = x.dim(2), c = x.dim(3);
    ForRows(ctx, y, [&](int64_t n, int64_t p) {
      const int64_t top = p * o.stride - o.padding;
      for (int64_t q = 0; q < y.dim(2); ++q) {
        const int64_t left = q * o.stride - o.padding;
        T* to = Pixel<T>(y, n, p, q);
        uint8_t* which = Pixel<uint8_t>(argmax, n, p, q);
        A* best = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::fill_n(best, c, -std::numeric_limits<A>::infinity());
        const int64_t i0 = std::max<int64_t>(0, -top), j0 = std::max<int64_t>(0, -left);
        std::fill_n(which, c, static_cast<uint8_t>(i0 * o.size + j0));
        for (int64_t i = i0; i < std::min(o.size, h - top); ++i) {
          for (int64_t j = j0; j < std::min(o.size, w - left); ++j) {
            const A* from = cpu::ReadRow(Pixel<T>(x, n, top + i, left + j), c, ScratchSlot::kRow1);
            kernels.max_into(from, static_cast<uint8_t>(i * o.size + j), c, best, which);
          }
        }
        cpu::StoreRow(best, c, to);
      }
    });
  });
}

void MaxPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& argmax, const Tensor& dx, const PoolOptions& o) {
  CheckPool(dx, dy, argmax, o);
  const cpu::OpScope scope(ctx, dx, Bytes(dx, dy) + static_cast<double>(argmax.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const auto& kernels = ImageKernels<A>::Get();
    const int64_t c = dx.dim(3);
    // Each pixel gathers from the windows that hold it: every row of the image is a task of its own.
    ForRows(ctx, dx, [&](int64_t n, int64_t row) {
      const Range ps = WindowsOf(row, dy.dim(1), o);
      for (int64_t column = 0; column < dx.dim(2); ++column) {
        const Range qs = WindowsOf(column, dy.dim(2), o);
        T* to = Pixel<T>(dx, n, row, column);
        A* sum = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::fill_n(sum, c, A(0));
        for (int64_t p = ps.begin; p < ps.end; ++p) {
          for (int64_t q = qs.begin; q < qs.end; ++q) {
            const int64_t i = row + o.padding - p * o.stride, j = column + o.padding - q * o.stride;
            kernels.add_where(cpu::ReadRow(Pixel<T>(dy, n, p, q), c, ScratchSlot::kRow1),
                              Pixel<uint8_t>(argmax, n, p, q), static_cast<uint8_t>(i * o.size + j), c, sum);
          }
        }
        cpu::StoreRow(sum, c, to);
      }
    });
  });
}

void AvgPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y) {
  CheckAvgPool(x, y);
  const cpu::OpScope scope(ctx, y, Bytes(x, y));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t c = x.dim(3);
    ForRows(ctx, y, [&](int64_t n, int64_t p) {
      const Range rows = PairOf(p, x.dim(1));
      for (int64_t q = 0; q < y.dim(2); ++q) {
        const Range columns = PairOf(q, x.dim(2));
        T* to = Pixel<T>(y, n, p, q);
        A* sum = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::fill_n(sum, c, A(0));
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          for (int64_t j = columns.begin; j < columns.end; ++j)
            cpu::AddRow(sum, cpu::ReadRow(Pixel<T>(x, n, i, j), c, ScratchSlot::kRow1), c, sum);
        }
        const int64_t count = (rows.end - rows.begin) * (columns.end - columns.begin);
        cpu::ScaleRow(sum, c, A(1) / static_cast<A>(count));
        cpu::StoreRow(sum, c, to);
      }
    });
  });
}

void AvgPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& dx) {
  CheckAvgPool(dx, dy);
  const cpu::OpScope scope(ctx, dx, Bytes(dx, dy));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t c = dx.dim(3);
    ForRows(ctx, dx, [&](int64_t n, int64_t row) {
      const Range rows = PairOf(row / 2, dx.dim(1));
      for (int64_t column = 0; column < dx.dim(2); ++column) {
        const Range columns = PairOf(column / 2, dx.dim(2));
        const int64_t count = (rows.end - rows.begin) * (columns.end - columns.begin);
        T* to = Pixel<T>(dx, n, row, column);
        const A* from = cpu::ReadRow(Pixel<T>(dy, n, row / 2, column / 2), c, ScratchSlot::kRow1);
        A* out = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::copy_n(from, c, out);
        cpu::ScaleRow(out, c, A(1) / static_cast<A>(count));
        cpu::StoreRow(out, c, to);
      }
    });
  });
}

void GlobalAvgPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y) {
  CheckGlobal(x, y);
  const cpu::OpScope scope(ctx, y, Bytes(x, y));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t c = x.dim(3), pixels = x.dim(1) * x.dim(2);
    ctx.pool->ParallelFor(x.dim(0), cpu::RowGrain(pixels * c), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        T* to = y.data<T>() + n * c;
        A* sum = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::fill_n(sum, c, A(0));
        for (int64_t i = 0; i < pixels; ++i)
          cpu::AddRow(sum, cpu::ReadRow(x.data<T>() + (n * pixels + i) * c, c, ScratchSlot::kRow1), c, sum);
        cpu::ScaleRow(sum, c, A(1) / static_cast<A>(pixels));
        cpu::StoreRow(sum, c, to);
      }
    });
  });
}

void GlobalAvgPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& dx) {
  CheckGlobal(dx, dy);
  const cpu::OpScope scope(ctx, dx, Bytes(dx, dy));
  if (scope.counted()) return;
  cpu::ByFloatType(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t c = dx.dim(3), pixels = dx.dim(1) * dx.dim(2);
    ctx.pool->ParallelFor(dx.dim(0), cpu::RowGrain(pixels * c), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const A* from = cpu::ReadRow(dy.data<T>() + n * c, c, ScratchSlot::kRow1);
        T* to = dx.data<T>() + n * pixels * c;
        A* first = cpu::WriteRow(to, c, ScratchSlot::kRow0);
        std::copy_n(from, c, first);
        cpu::ScaleRow(first, c, A(1) / static_cast<A>(pixels));
        cpu::StoreRow(first, c, to);
        for (int64_t i = 1; i < pixels; ++i) std::copy_n(to, c, to + i * c);
      }
    });
  });
}

}  // namespace shoal::ops
