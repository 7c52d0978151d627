// Sums, copies, scaling, embedding rows, reductions.
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::ForRuns;
using cpu::kRun;
using cpu::RowView;
using cpu::ScratchSlot;

template <class From, class To>
void ConvertRow(const From* from, int64_t n, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
  } else if constexpr (std::is_same_v<From, BFloat16> && std::is_same_v<To, float>) {
    cpu::ToFloat(from, n, to);
  } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, BFloat16>) {
    cpu::FromFloat(from, n, to);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
  }
}
void ConvertRow(const float* from, int64_t n, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// Partial results of fixed runs, combined in run order by the caller: the same bits for any number of threads.
template <class F>
std::vector<double> PerRun(OpContext& ctx, int64_t n, F fn) {
  constexpr int64_t kBlock = 16 * kRun;
  std::vector<double> partial((n + kBlock - 1) / kBlock);
  ctx.pool->Run(static_cast<int64_t>(partial.size()),
                [&](int64_t i) { partial[i] = fn(i * kBlock, std::min(kBlock, n - i * kBlock)); });
  return partial;
}

}  // namespace

void Add(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out) {
  CHECK(a.SameShape(b) && a.SameShape(out)) << "Add of " << ShapeString(a.shape()) << " and " << ShapeString(b.shape());
  const cpu::OpScope scope(ctx, out, 3.0 * static_cast<double>(out.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(out.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto add = [](const T* x, const T* y, int64_t n, T* to) {
      const auto* left = cpu::ReadRow(x, n, ScratchSlot::kRow0);
      const auto* right = cpu::ReadRow(y, n, ScratchSlot::kRow1);
      auto* sum = cpu::WriteRow(to, n, ScratchSlot::kRow2);
      cpu::AddRow(left, right, n, sum);
      cpu::StoreRow(sum, n, to);
    };
    if (a.contiguous() && b.contiguous() && out.contiguous()) {
      return ForRuns(ctx, out.size(), [&](int64_t begin, int64_t n) {
        add(a.data<T>() + begin, b.data<T>() + begin, n, out.data<T>() + begin);
      });
    }
    const RowView left = cpu::RowsOf(a), right = cpu::RowsOf(b), to = cpu::RowsOf(out);
    ctx.pool->ParallelFor(to.rows, cpu::RowGrain(to.columns), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        add(a.data<T>() + left.Offset(r), b.data<T>() + right.Offset(r), to.columns, out.data<T>() + to.Offset(r));
      }
    });
  });
}

void AddScaled(OpContext& ctx, const Tensor& a, float scale, const Tensor& out) {
  CHECK_EQ(a.size(), out.size()) << "AddScaled";
  const cpu::OpScope scope(ctx, out, static_cast<double>(a.bytes() + 2 * out.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(a.dtype(), [&](auto type) {
    using T = decltype(type);
    ForRuns(ctx, out.size(), [&](int64_t begin, int64_t n) {
      const auto* in = cpu::ReadRow(a.data<T>() + begin, n, ScratchSlot::kRow0);
      cpu::AxpyRow(in, n, static_cast<Arithmetic<T>>(scale), out.data<Arithmetic<T>>() + begin);
    });
  });
}

void Copy(OpContext& ctx, const Tensor& from, const Tensor& to) {
  CHECK_EQ(from.size(), to.size()) << "Copy " << ShapeString(from.shape()) << " into " << ShapeString(to.shape());
  const cpu::OpScope scope(ctx, to, static_cast<double>(from.bytes() + to.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(from.dtype(), [&](auto from_type) {
    cpu::ByFloatType(to.dtype(), [&](auto to_type) {
      using From = decltype(from_type);
      using To = decltype(to_type);
      if (from.contiguous() && to.contiguous()) {
        return ForRuns(ctx, to.size(), [&](int64_t begin, int64_t n) {
          ConvertRow(from.data<From>() + begin, n, to.data<To>() + begin);
        });
      }
      const RowView in = cpu::RowsOf(from), out = cpu::RowsOf(to);
      CHECK_EQ(in.columns, out.columns) << "Copy between strided views of different rows";
      ctx.pool->ParallelFor(in.rows, cpu::RowGrain(in.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          ConvertRow(from.data<From>() + in.Offset(r), in.columns, to.data<To>() + out.Offset(r));
        }
      });
    });
  });
}

void StochasticRound(OpContext& ctx, const Tensor& from, const RngKey& key, int64_t first_element, const Tensor& to) {
  CHECK(from.dtype() == DType::kF32 && to.dtype() == DType::kBF16 && from.size() == to.size())
      << "StochasticRound of " << DTypeName(from.dtype()) << ShapeString(from.shape());
  const cpu::OpScope scope(ctx, to, static_cast<double>(from.bytes() + to.bytes()));
  if (scope.counted()) return;
  const auto words = Rng(key).key();
  ForRuns(ctx, to.size(), [&](int64_t begin, int64_t n) {
    cpu::StochasticRoundRow(from.data<float>() + begin, n, words[0], words[1],
                            static_cast<uint64_t>(first_element + begin), to.data<BFloat16>() + begin);
  });
}

void Fill(OpContext& ctx, const Tensor& x, float value) {
  const cpu::OpScope scope(ctx, x, static_cast<double>(x.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const T filler = static_cast<T>(value);
    if (!x.contiguous()) {
      const RowView rows = cpu::RowsOf(x);
      return ctx.pool->ParallelFor(rows.rows, cpu::RowGrain(rows.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) std::fill_n(x.data<T>() + rows.Offset(r), rows.columns, filler);
      });
    }
    ForRuns(ctx, x.size(), [&](int64_t begin, int64_t n) { std::fill_n(x.data<T>() + begin, n, filler); });
  });
}

void Scale(OpContext& ctx, const Tensor& x, float factor) {
  const cpu::OpScope scope(ctx, x, 2.0 * static_cast<double>(x.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    ForRuns(ctx, x.size(), [&](int64_t begin, int64_t n) {
      auto* row = const_cast<Arithmetic<T>*>(cpu::ReadRow(x.data<T>() + begin, n, ScratchSlot::kRow0));
      cpu::ScaleRow(row, n, static_cast<Arithmetic<T>>(factor));
      cpu::StoreRow(row, n, x.data<T>() + begin);
    });
  });
}

void EmbeddingFwd(OpContext& ctx, const Tensor& tokens, const Tensor& table, const Tensor& out, Accumulate accumulate) {
  CHECK(out.rank() == 2 && table.rank() == 2 && out.dim(1) == table.dim(1)) << "embedding widths differ";
  const cpu::OpScope scope(ctx, out, 2.0 * static_cast<double>(out.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(out.dtype(), [&](auto type) {
    using T = decltype(type);
    const int64_t n = out.dim(1);
    const int32_t* ids = tokens.data<int32_t>();
    ctx.pool->ParallelFor(out.dim(0), cpu::RowGrain(n), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        DCHECK(ids[r] >= 0 && ids[r] < table.dim(0)) << "token " << ids[r] << " of a vocabulary of " << table.dim(0);
        const T* from = table.data<T>() + ids[r] * n;
        T* to = out.data<T>() + r * n;
        if (accumulate == Accumulate::kOverwrite) {
          std::copy_n(from, n, to);
          continue;
        }
        const auto* row = cpu::ReadRow(from, n, ScratchSlot::kRow0);
        auto* sum = const_cast<Arithmetic<T>*>(cpu::ReadRow(static_cast<const T*>(to), n, ScratchSlot::kRow1));
        cpu::AddRow(sum, row, n, sum);
        cpu::StoreRow(sum, n, to);
      }
    });
  });
}

void EmbeddingBwd(OpContext& ctx, const Tensor& tokens, const Tensor& dout, const Tensor& dtable) {
  CHECK_EQ(dout.dim(1), dtable.dim(1)) << "embedding widths differ";
  const cpu::OpScope scope(ctx, dout, 3.0 * static_cast<double>(dout.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(dout.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = Arithmetic<T>;
    const int64_t width = dout.dim(1), rows = dout.dim(0);
    const int32_t* ids = tokens.data<int32_t>();
    // Tasks own columns, so every row of the table is summed in token order.
    constexpr int64_t kColumns = 128;
    ctx.pool->Run((width + kColumns - 1) / kColumns, [&](int64_t piece) {
      const int64_t begin = piece * kColumns, n = std::min(kColumns, width - begin);
      for (int64_t r = 0; r < rows; ++r) {
        const A* g = cpu::ReadRow(dout.data<T>() + r * width + begin, n, ScratchSlot::kRow0);
        A* to = dtable.data<A>() + ids[r] * width + begin;
        cpu::AddRow(to, g, n, to);
      }
    });
  });
}

double SumOfSquares(OpContext& ctx, const Tensor& x) { return SumOfSquares(ctx, absl::MakeConstSpan(&x, 1)); }

double SumOfSquares(OpContext& ctx, absl::Span<const Tensor> xs) {
  if (xs.empty()) return 0;
  double bytes = 0;
  for (const Tensor& x : xs) bytes += static_cast<double>(x.bytes());
  const cpu::OpScope scope(ctx, xs[0], bytes);
  if (scope.counted()) return std::nan("");
  constexpr int64_t kBlock = 16 * kRun;
  struct Block {
    const Tensor* x;
    int64_t begin, end;
  };
  std::vector<Block> blocks;
  for (const Tensor& x : xs) {
    for (int64_t begin = 0; begin < x.size(); begin += kBlock)
      blocks.push_back({&x, begin, std::min(x.size(), begin + kBlock)});
  }
  std::vector<double> partial(blocks.size());
  cpu::ByFloatType(xs[0].dtype(), [&](auto type) {
    using T = decltype(type);
    // A thread reads long stretches: memory gives them faster.
    ctx.pool->ParallelFor(static_cast<int64_t>(blocks.size()), 4, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const Block& block = blocks[b];
        for (int64_t i = block.begin; i < block.end; i += kRun) {
          const int64_t n = std::min(kRun, block.end - i);
          partial[b] += cpu::SumOfSquaresRow(cpu::ReadRow(block.x->data<T>() + i, n, ScratchSlot::kRow0), n);
        }
      }
    });
  });
  double sum = 0;
  for (double p : partial) sum += p;
  return sum;
}

double MaxAbs(OpContext& ctx, const Tensor& x) {
  const cpu::OpScope scope(ctx, x, static_cast<double>(x.bytes()));
  if (scope.counted()) return std::nan("");
  double most = 0;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto partial = PerRun(ctx, x.size(), [&](int64_t begin, int64_t n) {
      double block = 0;
      for (int64_t i = 0; i < n; i += kRun) {
        const int64_t m = std::min(kRun, n - i);
        block =
            std::max<double>(block, cpu::MaxAbsRow(cpu::ReadRow(x.data<T>() + begin + i, m, ScratchSlot::kRow0), m));
      }
      return block;
    });
    for (double p : partial) most = std::max(most, p);
  });
  return most;
}

// The square of a finite f32 cannot overflow a double, so a sum of squares is finite exactly when all elements are; for
// f64 each element is looked at.
bool AllFinite(OpContext& ctx, const Tensor& x) {
  if (x.dtype() != DType::kF64) return std::isfinite(SumOfSquares(ctx, x)) || x.meta();
  const cpu::OpScope scope(ctx, x, static_cast<double>(x.bytes()));
  if (scope.counted()) return true;
  const double* values = x.data<double>();
  return std::all_of(values, values + x.size(), [](double v) { return std::isfinite(v); });
}

}  // namespace shoal::ops
