// LayerNorm and RMSNorm. Weight gradients are summed by tasks that own columns, in row order: the same bits for any
// number of threads.
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;
using cpu::RowView;
using cpu::ScratchSlot;

enum class Kind { kLayer, kRms };

template <class T>
void NormFwd(OpContext& ctx, Kind kind, const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon,
             const Tensor& y, const Tensor& stats) {
  using A = Arithmetic<T>;
  const RowView in = cpu::RowsOf(x), out = cpu::RowsOf(y);
  const int64_t n = in.columns;
  const int64_t per_row = kind == Kind::kLayer ? 2 : 1;
  ctx.pool->ParallelFor(in.rows, cpu::RowGrain(n), [&](int64_t begin, int64_t end) {
    const A* w = cpu::ReadRow(weight.data<T>(), n, ScratchSlot::kRow0);
    const A* b = kind == Kind::kLayer ? cpu::ReadRow(bias.data<T>(), n, ScratchSlot::kRow1) : nullptr;
    for (int64_t r = begin; r < end; ++r) {
      const A* row = cpu::ReadRow(x.data<T>() + in.Offset(r), n, ScratchSlot::kRow2);
      T* to = y.data<T>() + out.Offset(r);
      A* result = cpu::WriteRow(to, n, ScratchSlot::kRow2);
      A* s = stats.data<A>() + r * per_row;
      if (kind == Kind::kLayer)
        cpu::LayerNormRow(row, w, b, n, static_cast<A>(epsilon), result, s);
      else
        cpu::RmsNormRow(row, w, n, static_cast<A>(epsilon), result, s);
      cpu::StoreRow(result, n, to);
    }
  });
}

template <class T>
void NormBwdInput(OpContext& ctx, Kind kind, const Tensor& dy, const Tensor& x, const Tensor& weight,
                  const Tensor& stats, const Tensor& dx, Accumulate accumulate) {
  using A = Arithmetic<T>;
  const RowView gy = cpu::RowsOf(dy), in = cpu::RowsOf(x), gx = cpu::RowsOf(dx);
  const int64_t n = in.columns;
  ctx.pool->ParallelFor(in.rows, cpu::RowGrain(n), [&](int64_t begin, int64_t end) {
    const A* w = cpu::ReadRow(weight.data<T>(), n, ScratchSlot::kRow0);
    for (int64_t r = begin; r < end; ++r) {
      const A* g = cpu::ReadRow(dy.data<T>() + gy.Offset(r), n, ScratchSlot::kRow1);
      const A* row = cpu::ReadRow(x.data<T>() + in.Offset(r), n, ScratchSlot::kRow2);
      T* to = dx.data<T>() + gx.Offset(r);
      A* result = cpu::WriteRow(to, n, ScratchSlot::kTile0);
      if (accumulate == Accumulate::kAdd) cpu::ReadRow(to, n, ScratchSlot::kTile0);
      const A add = accumulate == Accumulate::kAdd ? A(1) : A(0);
      if (kind == Kind::kLayer) {
        cpu::LayerNormBackRow(g, row, w, stats.data<A>() + 2 * r, n, add, result, static_cast<A*>(nullptr),
                              static_cast<A*>(nullptr));
      } else {
        cpu::RmsNormBackRow(g, row, w, stats.data<A>()[r], n, add, result, static_cast<A*>(nullptr));
      }
      cpu::StoreRow(result, n, to);
    }
  });
}

template <class T>
void NormBwdWeight(OpContext& ctx, Kind kind, const Tensor& dy, const Tensor& x, const Tensor& stats,
                   const Tensor& dweight, const Tensor& dbias) {
  using A = Arithmetic<T>;
  const RowView gy = cpu::RowsOf(dy), in = cpu::RowsOf(x);
  constexpr int64_t kColumns = 128;
  ctx.pool->Run((in.columns + kColumns - 1) / kColumns, [&](int64_t piece) {
    const int64_t begin = piece * kColumns, n = std::min(kColumns, in.columns - begin);
    A* dw = dweight.data<A>() + begin;
    A* db = kind == Kind::kLayer ? dbias.data<A>() + begin : nullptr;
    for (int64_t r = 0; r < in.rows; ++r) {
      const A* g = cpu::ReadRow(dy.data<T>() + gy.Offset(r) + begin, n, ScratchSlot::kRow0);
      const A* row = cpu::ReadRow(x.data<T>() + in.Offset(r) + begin, n, ScratchSlot::kRow1);
      const A* none = nullptr;
      if (kind == Kind::kLayer) {
        cpu::LayerNormBackRow(g, row, none, stats.data<A>() + 2 * r, n, A(0), static_cast<A*>(nullptr), dw, db);
      } else {
        cpu::RmsNormBackRow(g, row, none, stats.data<A>()[r], n, A(0), static_cast<A*>(nullptr), dw);
      }
    }
  });
}

void NormBwd(OpContext& ctx, Kind kind, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& stats,
             const Tensor& dx, Accumulate accumulate_dx, const Tensor& dweight, const Tensor& dbias) {
  const cpu::OpScope scope(ctx, dy, static_cast<double>(2 * dy.bytes() + x.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(), [&](auto type) {
    using T = decltype(type);
    // Weight gradients first: dx may alias dy.
    if (dweight.defined()) NormBwdWeight<T>(ctx, kind, dy, x, stats, dweight, dbias);
    if (dx.defined()) NormBwdInput<T>(ctx, kind, dy, x, weight, stats, dx, accumulate_dx);
  });
}

}  // namespace

void LayerNormFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon,
                  const Tensor& y, const Tensor& stats) {
  CHECK(x.SameShape(y)) << "LayerNorm " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, static_cast<double>(x.bytes() + y.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(x.dtype(),
                   [&](auto type) { NormFwd<decltype(type)>(ctx, Kind::kLayer, x, weight, bias, epsilon, y, stats); });
}

void LayerNormBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& stats,
                  const Tensor& dx, Accumulate accumulate_dx, const Tensor& dweight, const Tensor& dbias) {
  NormBwd(ctx, Kind::kLayer, dy, x, weight, stats, dx, accumulate_dx, dweight, dbias);
}

void RmsNormFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                const Tensor& stats) {
  CHECK(x.SameShape(y)) << "RmsNorm " << ShapeString(x.shape()) << " into " << ShapeString(y.shape());
  const cpu::OpScope scope(ctx, y, static_cast<double>(x.bytes() + y.bytes()));
  if (scope.counted()) return;
  cpu::ByFloatType(
      x.dtype(), [&](auto type) { NormFwd<decltype(type)>(ctx, Kind::kRms, x, weight, Tensor(), epsilon, y, stats); });
}

void RmsNormBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& stats,
                const Tensor& dx, Accumulate accumulate_dx, const Tensor& dweight) {
  NormBwd(ctx, Kind::kRms, dy, x, weight, stats, dx, accumulate_dx, dweight, Tensor());
}

}  // namespace shoal::ops
