// Matmul, BatchedMatmul, LinearFwd, ColumnSum.
#include "runtime/ops/cpu/gemm.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::GemmShape;

GemmShape ShapeOf(const Tensor& a, const Tensor& b, const Tensor& out, const MatmulOptions& o) {
  CHECK(a.rank() == 2 && b.rank() == 2 && out.rank() == 2) << "Matmul takes matrices";
  const bool ta = o.transpose_a == Transpose::kYes, tb = o.transpose_b == Transpose::kYes;
  GemmShape s{a.dim(ta ? 1 : 0), b.dim(tb ? 0 : 1), a.dim(ta ? 0 : 1), o.transpose_a,
              o.transpose_b,     a.stride(0),       b.stride(0),       out.stride(0)};
  CHECK_EQ(s.k, b.dim(tb ? 1 : 0)) << "Matmul of " << ShapeString(a.shape()) << " and " << ShapeString(b.shape());
  CHECK(out.dim(0) == s.m && out.dim(1) == s.n) << "Matmul into " << ShapeString(out.shape());
  return s;
}

// Where the processor has no bf16 instructions, panels are widened to fp32 and multiplied there: `source` as a packed
// fp32 matrix in the caller's scratch.
const float* Widen(OpContext& ctx, const Tensor& source, cpu::ScratchSlot slot) {
  const int64_t rows = source.dim(0), columns = source.dim(1), stride = source.stride(0);
  float* packed = cpu::Scratch<float>(slot, rows * columns);
  const BFloat16* from = source.data<BFloat16>();
  ctx.pool->ParallelFor(rows, cpu::RowGrain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) cpu::ToFloat(from + r * stride, columns, packed + r * columns);
  });
  return packed;
}

void MatmulBf16(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out, GemmShape s,
                Accumulate accumulate) {
  if (cpu::ParallelGemmBf16(*ctx.pool, s, a.data<BFloat16>(), b.data<BFloat16>(), accumulate, out.raw(), out.dtype()))
    return;
  s.lda = a.dim(1);
  s.ldb = b.dim(1);
  const float* wide_a = Widen(ctx, a, cpu::ScratchSlot::kTile0);
  const float* wide_b = Widen(ctx, b, cpu::ScratchSlot::kTile1);
  if (out.dtype() == DType::kF32) {
    cpu::ParallelGemm<float>(*ctx.pool, s, wide_a, wide_b, accumulate, out.data<float>());
    return;
  }
  const int64_t ldc = s.ldc;
  s.ldc = s.n;
  float* wide = cpu::Scratch<float>(cpu::ScratchSlot::kTile2, s.m * s.n);
  BFloat16* to = out.data<BFloat16>();
  if (accumulate == Accumulate::kAdd) {
    for (int64_t r = 0; r < s.m; ++r) cpu::ToFloat(to + r * ldc, s.n, wide + r * s.n);
  }
  cpu::ParallelGemm<float>(*ctx.pool, s, wide_a, wide_b, accumulate, wide);
  ctx.pool->ParallelFor(s.m, cpu::RowGrain(s.n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) cpu::FromFloat(wide + r * s.n, s.n, to + r * ldc);
  });
}

template <class T>
void AddBiasRows(OpContext& ctx, const Tensor& bias, const Tensor& y) {
  using A = cpu::Arithmetic<T>;
  const auto rows = cpu::RowsOf(y);
  const int64_t n = rows.columns;
  ctx.pool->ParallelFor(rows.rows, cpu::RowGrain(n), [&](int64_t begin, int64_t end) {
    const A* b = cpu::ReadRow(bias.data<T>(), n, cpu::ScratchSlot::kRow0);
    for (int64_t r = begin; r < end; ++r) {
      T* row = y.data<T>() + rows.Offset(r);
      const A* in = cpu::ReadRow(row, n, cpu::ScratchSlot::kRow1);
      A* to = cpu::WriteRow(row, n, cpu::ScratchSlot::kRow1);
      cpu::AddRow(in, b, n, to);
      cpu::StoreRow(to, n, row);
    }
  });
}

// By transposes: each has a rate of its own.
const char* OpName(const MatmulOptions& o) {
  const bool ta = o.transpose_a == Transpose::kYes, tb = o.transpose_b == Transpose::kYes;
  return ta ? (tb ? "Matmul.TT" : "Matmul.TN") : (tb ? "Matmul.NT" : "Matmul.NN");
}

}  // namespace

void Matmul(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out, MatmulOptions options) {
  const GemmShape s = ShapeOf(a, b, out, options);
  const double m = static_cast<double>(s.m), n = static_cast<double>(s.n), k = static_cast<double>(s.k);
  const double bytes = (m * k + k * n) * static_cast<double>(DTypeBytes(a.dtype())) +
                       m * n * static_cast<double>(DTypeBytes(out.dtype()));
  const cpu::OpScope scope(ctx, out, 2 * m * n * k, bytes, OpName(options));
  if (scope.counted()) return;
  CHECK(a.dtype() == b.dtype()) << "Matmul of " << DTypeName(a.dtype()) << " and " << DTypeName(b.dtype());
  switch (a.dtype()) {
    case DType::kF32:
      return cpu::ParallelGemm<float>(*ctx.pool, s, a.data<float>(), b.data<float>(), options.accumulate,
                                      out.data<float>());
    case DType::kF64:
      return cpu::ParallelGemm<double>(*ctx.pool, s, a.data<double>(), b.data<double>(), options.accumulate,
                                       out.data<double>());
    case DType::kBF16:
      return MatmulBf16(ctx, a, b, out, s, options.accumulate);
    default:
      LOG(FATAL) << "Matmul of " << DTypeName(a.dtype());
  }
}

void BatchedMatmul(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out, MatmulOptions options) {
  CHECK(a.rank() == 3 && b.rank() == 3 && out.rank() == 3) << "BatchedMatmul takes [B, ., .]";
  CHECK(a.dim(0) == b.dim(0) && a.dim(0) == out.dim(0)) << "BatchedMatmul of unequal batches";
  for (int64_t i = 0; i < a.dim(0); ++i) {
    const auto matrix = [i](const Tensor& t) { return t.Rows(i, i + 1).View({t.dim(1), t.dim(2)}); };
    Matmul(ctx, matrix(a), matrix(b), matrix(out), options);
  }
}

void LinearFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
               Accumulate accumulate) {
  Matmul(ctx, x, weight, y, {.transpose_b = Transpose::kYes, .accumulate = accumulate});
  if (!bias.defined()) return;
  const cpu::OpScope scope(ctx, y, 2.0 * static_cast<double>(y.bytes()));
  if (scope.counted()) return;
  CHECK_EQ(bias.size(), y.dim(1)) << "bias of a linear layer";
  cpu::ByFloatType(y.dtype(), [&](auto type) { AddBiasRows<decltype(type)>(ctx, bias, y); });
}

void ColumnSum(OpContext& ctx, const Tensor& dy, const Tensor& out, Accumulate accumulate) {
  const cpu::OpScope scope(ctx, dy, static_cast<double>(dy.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    using A = cpu::Arithmetic<T>;
    const auto rows = cpu::RowsOf(dy);
    A* sum = out.data<A>();
    // Tasks own columns, so each column is summed in row order whatever the number of threads.
    constexpr int64_t kColumns = 256;
    const int64_t pieces = (rows.columns + kColumns - 1) / kColumns;
    ctx.pool->Run(pieces, [&](int64_t piece) {
      const int64_t begin = piece * kColumns, n = std::min(kColumns, rows.columns - begin);
      if (accumulate == Accumulate::kOverwrite) std::fill(sum + begin, sum + begin + n, A(0));
      for (int64_t r = 0; r < rows.rows; ++r) {
        const A* row = cpu::ReadRow(dy.data<T>() + rows.Offset(r) + begin, n, cpu::ScratchSlot::kRow0);
        cpu::AddRow(sum + begin, row, n, sum + begin);
      }
    });
  });
}

}  // namespace shoal::ops
