// Elementwise ops on rows that do not lie side by side.
#include <gtest/gtest.h>

#include "tests/runtime/ops/op_fixture.h"

namespace shoal {
namespace {

TEST(StridedRows, AddAndFill) {
  OpHarness h;
  const Tensor a = RandomTensor({5, 12}, DType::kF32, "a"), b = RandomTensor({5, 7}, DType::kF32, "b"),
               out = Tensor::Zeros({5, 9}, DType::kF32);
  ops::Add(h.ctx, a.Slice(1, 2, 6), b.Slice(1, 1, 5), out.Slice(1, 3, 7));
  ops::Fill(h.ctx, out.Slice(1, 0, 2), 4);
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 9; ++c) {
      const double sum = c >= 3 && c < 7 ? At(a, 12 * r + c - 1) + At(b, 7 * r + c - 2) : 0;
      EXPECT_FLOAT_EQ(static_cast<float>(At(out, 9 * r + c)), c < 2 ? 4.0F : static_cast<float>(sum)) << r << ", " << c;
    }
  }
}

}  // namespace
}  // namespace shoal
