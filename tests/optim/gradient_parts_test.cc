#include "optim/gradient_parts.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(GradientParts, NormsAreOfWhatEachPartAdded) {
  const Tensor a = Tensor::Zeros({3}, DType::kF32), b = Tensor::Zeros({100'000}, DType::kF32);
  GradientParts parts(std::vector<Tensor>{a, b});
  EXPECT_EQ(parts.bytes(), 4 * 100'003);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    parts.BeginStep();
    // The first part overwrites what an earlier step left.
    a.data<float>()[0] = 0, a.data<float>()[1] = 3, b.data<float>()[99'999] = 4;
    EXPECT_EQ(parts.SquaredNorm(pool), 25);
    a.data<float>()[0] += 2, b.data<float>()[99'999] -= 1;
    EXPECT_EQ(parts.SquaredNorm(pool), 5);
    EXPECT_EQ(parts.SquaredNorm(pool), 0);
  }
}

}  // namespace
}  // namespace shoal
