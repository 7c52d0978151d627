// GELU, SwiGLU, rotary positions, dropout: one pass over rows.
#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ForRuns;
using cpu::RowView;
using cpu::ScratchSlot;

template <class T>
void RopeRows(OpContext& ctx, const Tensor& x, const Tensor& positions, float theta, Direction direction) {
  using A = Arithmetic<T>;
  const int64_t tokens = x.dim(0), heads = x.dim(1), size = x.dim(2), half = size / 2;
  std::vector<double> frequency(half);
  for (int64_t i = 0; i < half; ++i)
    frequency[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(size));
  const A sign = direction == Direction::kForward ? A(1) : A(-1);
  const int32_t* position = positions.data<int32_t>();
  // Sequences start at 0 again and again: one row of cosines and sines per position, not per token.
  const int64_t rows = tokens == 0 ? 0 : *std::max_element(position, position + tokens) + 1;
  A* table = cpu::Scratch<A>(ScratchSlot::kTile5, rows * size);
  ctx.pool->ParallelFor(rows, cpu::RowGrain(16 * size), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) * frequency[i];
        table[p * size + i] = static_cast<A>(std::cos(angle));
        table[p * size + half + i] = static_cast<A>(std::sin(angle));
      }
    }
  });
  ctx.pool->ParallelFor(tokens, cpu::RowGrain(heads * size), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const A* cosine = table + position[t] * size;
      T* token = x.data<T>() + t * x.stride(0);
      if constexpr (std::is_same_v<T, A>) {
        cpu::RopeRows(token, heads, x.stride(1), cosine, cosine + half, size, sign);
      } else {
        for (int64_t h = 0; h < heads; ++h) {
          T* row = token + h * x.stride(1);
          A* wide = const_cast<A*>(cpu::ReadRow(row, size, ScratchSlot::kRow1));
          cpu::RopeRows(wide, 1, size, cosine, cosine + half, size, sign);
          cpu::StoreRow(wide, size, row);
        }
      }
    }
  });
}

}  // namespace

void Rope(OpContext& ctx, const Tensor& x, const Tensor& positions, float theta, Direction direction) {
  CHECK_EQ(x.rank(), 3) << "Rope takes [T, H, C]";
  CHECK_EQ(x.dim(2) % 2, 0) << "Rope needs an even head size";
  const cpu::OpScope scope(ctx, x, 2.0 * static_cast<double>(x.bytes()));
  if (scope.counted()) return;
  CHECK_EQ(positions.size(), x.dim(0)) << "one position per token";
  cpu::ByFloatType(x.dtype(), [&](auto type) { RopeRows<decltype(type)>(ctx, x, positions, theta, direction); });
}

void GeluFwd(OpContext& ctx, const Tensor& x, const Tensor& y) {
  CHECK(x.SameShape(y)) << "GeluFwd " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, 2.0 * static_cast<double>(y.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    ForRuns(ctx, x.size(), [&](int64_t begin, int64_t n) {
      const auto* in = cpu::ReadRow(x.data<T>() + begin, n, ScratchSlot::kRow0);
      auto* out = cpu::WriteRow(y.data<T>() + begin, n, ScratchSlot::kRow1);
      cpu::GeluRow(in, n, out);
      cpu::StoreRow(out, n, y.data<T>() + begin);
    });
  });
}

void GeluBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& dx) {
  CHECK(x.SameShape(dy) && x.SameShape(dx)) << "GeluBwd of " << ShapeString(dy.shape());
  const cpu::OpScope scope(ctx, dx, 3.0 * static_cast<double>(dx.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    ForRuns(ctx, x.size(), [&](int64_t begin, int64_t n) {
      const auto* g = cpu::ReadRow(dy.data<T>() + begin, n, ScratchSlot::kRow0);
      const auto* in = cpu::ReadRow(x.data<T>() + begin, n, ScratchSlot::kRow1);
      auto* out = cpu::WriteRow(dx.data<T>() + begin, n, ScratchSlot::kRow2);
      cpu::GeluBackRow(g, in, n, out);
      cpu::StoreRow(out, n, dx.data<T>() + begin);
    });
  });
}

void SwiGluFwd(OpContext& ctx, const Tensor& gate_up, const Tensor& y) {
  const int64_t f = y.dim(1);
  CHECK_EQ(gate_up.dim(1), 2 * f) << "SwiGLU takes [gate | up]";
  const cpu::OpScope scope(ctx, y, 3.0 * static_cast<double>(y.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(y.dtype(), [&](auto type) {
    using T = decltype(type);
    ctx.pool->ParallelFor(y.dim(0), cpu::RowGrain(f), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto* in = cpu::ReadRow(gate_up.data<T>() + r * gate_up.stride(0), 2 * f, ScratchSlot::kRow0);
        T* to = y.data<T>() + r * y.stride(0);
        auto* out = cpu::WriteRow(to, f, ScratchSlot::kRow1);
        cpu::SwiGluRow(in, in + f, f, out);
        cpu::StoreRow(out, f, to);
      }
    });
  });
}

void SwiGluBwd(OpContext& ctx, const Tensor& dy, const Tensor& gate_up, const Tensor& d_gate_up) {
  const int64_t f = dy.dim(1);
  CHECK(gate_up.dim(1) == 2 * f && gate_up.SameShape(d_gate_up)) << "SwiGLU takes [gate | up]";
  const cpu::OpScope scope(ctx, dy, 5.0 * static_cast<double>(dy.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    ctx.pool->ParallelFor(dy.dim(0), cpu::RowGrain(f), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto* g = cpu::ReadRow(dy.data<T>() + r * dy.stride(0), f, ScratchSlot::kRow0);
        const auto* in = cpu::ReadRow(gate_up.data<T>() + r * gate_up.stride(0), 2 * f, ScratchSlot::kRow1);
        T* to = d_gate_up.data<T>() + r * d_gate_up.stride(0);
        auto* out = cpu::WriteRow(to, 2 * f, ScratchSlot::kRow2);
        cpu::SwiGluBackRow(g, in, in + f, f, out, out + f);
        cpu::StoreRow(out, 2 * f, to);
      }
    });
  });
}

void Dropout(OpContext& ctx, const Tensor& x, float rate, const RngKey& key, const Tensor& token_counters,
             const Tensor& y) {
  CHECK(x.SameShape(y)) << "Dropout " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  CHECK(rate >= 0 && rate < 1) << "dropout rate " << rate << "; it lies in [0, 1)";
  const cpu::OpScope scope(ctx, y, 2.0 * static_cast<double>(y.bytes()));
  if (scope.counted()) return;
  CHECK_EQ(token_counters.size(), x.dim(0)) << "one counter per token";
  const Rng rng(key);
  // Four words per call of the generator: units 4u .. 4u + 3 of a token share a counter.
  const uint32_t threshold = static_cast<uint32_t>(static_cast<double>(rate) * 0x1p32);
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const A scale = A(1) / (A(1) - static_cast<A>(rate));
    const int64_t n = x.dim(1);
    const int64_t* counters = token_counters.data<int64_t>();
    ctx.pool->ParallelFor(x.dim(0), cpu::RowGrain(8 * n), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* from = x.data<T>() + r * x.stride(0);
        T* to = y.data<T>() + r * y.stride(0);
        for (int64_t c = 0; c < n; c += 4) {
          const auto words = rng.Words(static_cast<uint64_t>(counters[r]), static_cast<uint64_t>(c / 4));
          for (int64_t i = 0; i < std::min<int64_t>(4, n - c); ++i) {
            to[c + i] = words[i] >= threshold ? static_cast<T>(static_cast<A>(from[c + i]) * scale) : T();
          }
        }
      }
    });
  });
}

}  // namespace shoal::ops
