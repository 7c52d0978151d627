#include "comm/reduce.h"

#include <glog/logging.h>

#include <algorithm>

namespace shoal {
namespace {

constexpr int64_t kBlock = 2048;

template <class T, class A>
void Load(const T* from, int64_t n, A* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<A>(from[i]);
}

template <class T, class A>
void Reduce(ReduceOp op, absl::Span<const void* const> from, int64_t count, T* out) {
  A sum[kBlock], next[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    Load(static_cast<const T*>(from[0]) + begin, n, sum);
    for (size_t r = 1; r < from.size(); ++r) {
      Load(static_cast<const T*>(from[r]) + begin, n, next);
      switch (op) {
        case ReduceOp::kSum:
          for (int64_t i = 0; i < n; ++i) sum[i] += next[i];
          break;
        // NaN wins, so that a maximum does not hide it.
        case ReduceOp::kMax:
          for (int64_t i = 0; i < n; ++i) sum[i] = next[i] > sum[i] || next[i] != next[i] ? next[i] : sum[i];
          break;
        case ReduceOp::kMin:
          for (int64_t i = 0; i < n; ++i) sum[i] = next[i] < sum[i] || next[i] != next[i] ? next[i] : sum[i];
          break;
      }
    }
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<T>(sum[i]);
  }
}

}  // namespace

void ReduceInRankOrder(DType dtype, ReduceOp op, absl::Span<const void* const> from, int64_t count, void* out) {
  switch (dtype) {
    case DType::kF32:
      return Reduce<float, float>(op, from, count, static_cast<float*>(out));
    case DType::kBF16:
      return Reduce<BFloat16, float>(op, from, count, static_cast<BFloat16*>(out));
    case DType::kF64:
      return Reduce<double, double>(op, from, count, static_cast<double*>(out));
    case DType::kI32:
      return Reduce<int32_t, int32_t>(op, from, count, static_cast<int32_t*>(out));
    case DType::kI64:
      return Reduce<int64_t, int64_t>(op, from, count, static_cast<int64_t*>(out));
    case DType::kU8:
      return Reduce<uint8_t, uint8_t>(op, from, count, static_cast<uint8_t*>(out));
  }
}

}  // namespace shoal
