// What the op table's rows share: random operands in any dtype, and the comparison with float64 references.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/arena.h"

namespace shoal {

// Values that the dtype holds exactly enough: what the kernel reads is what the reference reads.
inline Tensor RandomTensor(Shape shape, DType dtype, absl::string_view name, double scale = 1) {
  const Rng rng({7, RngPurpose::kTest, NameHash(name)});
  Tensor t = Tensor::Zeros(std::move(shape), dtype);
  for (int64_t i = 0; i < t.size(); ++i) {
    const double value = scale * rng.Normal(0, static_cast<uint64_t>(i));
    if (dtype == DType::kF64)
      t.data<double>()[i] = value;
    else if (dtype == DType::kF32)
      t.data<float>()[i] = static_cast<float>(value);
    else
      t.data<BFloat16>()[i] = BFloat16(static_cast<float>(value));
  }
  return t;
}

inline double At(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::kF64) return t.data<double>()[i];
  return t.dtype() == DType::kF32 ? static_cast<double>(t.data<float>()[i])
                                  : static_cast<double>(static_cast<float>(t.data<BFloat16>()[i]));
}

inline std::vector<double> ToDoubles(const Tensor& t) {
  std::vector<double> values(t.size());
  for (int64_t i = 0; i < t.size(); ++i) values[i] = At(t, i);
  return values;
}

// Norm of the difference over the norm of what is wanted: what a dtype's rounding explains, with room for sums.
inline double Tolerance(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 1e-12;
    case DType::kF32:
      return 2e-6;
    default:
      return 1e-2;
  }
}

inline void ExpectClose(const Tensor& got, const std::vector<double>& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), static_cast<int64_t>(want.size())) << what;
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(At(got, i))) << what << ", element " << i << " is " << At(got, i);
    difference += (At(got, i) - want[i]) * (At(got, i) - want[i]);
    norm += want[i] * want[i];
  }
  EXPECT_LE(std::sqrt(difference),
            tolerance * (norm > 0 ? std::sqrt(norm) : std::sqrt(static_cast<double>(want.size()))))
      << what << ", relative error " << std::sqrt(difference / norm);
}

struct OpHarness {
  explicit OpHarness(int threads = 2)
      : pool(std::make_unique<ThreadPool>(threads)), arena(*Arena::Create(1 << 28, DeviceKind::kCpu)) {
    ctx.pool = pool.get();
  }
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Arena> arena;
  OpContext ctx;
};

}  // namespace shoal
