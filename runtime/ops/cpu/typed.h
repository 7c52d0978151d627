// Helpers of the op files: dtype dispatch, and rows of any float type seen as rows of the arithmetic type.
#pragma once

#include <glog/logging.h>

#include <algorithm>
#include <type_traits>

#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/cpu/scratch.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/tensor.h"

namespace shoal::cpu {

// Arithmetic type of a storage type: bf16 computes in float.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// Calls fn with a value of the storage type of `dtype`: f32, bf16 or f64.
template <class F>
void ByFloatType(DType dtype, F fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(float{});
    case DType::kBF16:
      return fn(BFloat16{});
    case DType::kF64:
      return fn(double{});
    default:
      LOG(FATAL) << "op on " << DTypeName(dtype) << "; it takes f32, bf16 or f64";
  }
}

// Calls fn(begin, count) on runs of a flat tensor; a run fits in the first-level cache.
constexpr int64_t kRun = 4096;
template <class F>
void ForRuns(OpContext& ctx, int64_t n, F fn) {
  ctx.pool->ParallelFor((n + kRun - 1) / kRun, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i * kRun, std::min(kRun, n - i * kRun));
  });
}

// A readable row: itself, or converted into scratch.
template <class T>
const Arithmetic<T>* ReadRow(const T* row, int64_t n, ScratchSlot slot) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    float* buffer = Scratch<float>(slot, n);
    ToFloat(row, n, buffer);
    return buffer;
  } else {
    (void)n, (void)slot;
    return row;
  }
}
// Where to write a row of results; StoreRow puts it in place.
template <class T>
Arithmetic<T>* WriteRow(T* row, int64_t n, ScratchSlot slot) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return Scratch<float>(slot, n);
  } else {
    (void)n, (void)slot;
    return row;
  }
}
template <class T>
void StoreRow(const Arithmetic<T>* values, int64_t n, T* row) {
  if constexpr (std::is_same_v<T, BFloat16>)
    FromFloat(values, n, row);
  else
    (void)values, (void)n, (void)row;
}

// A tensor as rows of its last dimension, for [R, C] and [T, H, C] views whose last dimension is contiguous.
struct RowView {
  int64_t rows = 0, columns = 0, inner = 1, outer_stride = 0, inner_stride = 0;  // row r = (r / inner, r % inner)
  int64_t Offset(int64_t r) const { return r / inner * outer_stride + r % inner * inner_stride; }
};
inline RowView RowsOf(const Tensor& t) {
  CHECK(t.rank() >= 1 && t.rank() <= 3) << "rows of " << ShapeString(t.shape());
  CHECK(t.dim(-1) <= 1 || t.stride(-1) == 1) << "the last dimension must be contiguous";
  RowView view;
  view.columns = t.dim(-1);
  if (t.rank() == 1) {
    view.rows = 1;
  } else if (t.rank() == 2) {
    view.rows = t.dim(0);
    view.outer_stride = t.stride(0);
  } else {
    view.rows = t.dim(0) * t.dim(1);
    view.inner = std::max<int64_t>(1, t.dim(1));
    view.outer_stride = t.stride(0);
    view.inner_stride = t.stride(1);
  }
  return view;
}

// Stands at the beginning of every op. On a dry run the op's cost is written down, and the op computes nothing; on a
// real one its time goes to the context's spans.
class OpScope {
 public:
  OpScope(OpContext& ctx, const Tensor& out, double flops, double bytes, const char* name = __builtin_FUNCTION())
      : counted_(out.meta()), spans_(counted_ ? nullptr : ctx.spans) {
    if (counted_ && ctx.cost != nullptr) ctx.cost->ops[name] += {1, flops, bytes};
    if (spans_ == nullptr) return;
    span_.name = name;
    span_.flops = flops;
    span_.bytes = bytes;
    span_.start = SteadySeconds();
  }
  OpScope(OpContext& ctx, const Tensor& out, double bytes, const char* name = __builtin_FUNCTION())
      : OpScope(ctx, out, 0, bytes, name) {}
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;
  ~OpScope() {
    if (spans_ == nullptr) return;
    span_.seconds = SteadySeconds() - span_.start;
    spans_->Add(span_);
  }
  bool counted() const { return counted_; }

 private:
  bool counted_;
  SpanSink* spans_;
  Span span_;
};

// Rows per task so that a task handles about 16 Ki elements.
inline int64_t RowGrain(int64_t columns) { return std::max<int64_t>(1, (16 << 10) / std::max<int64_t>(1, columns)); }

}  // namespace shoal::cpu
