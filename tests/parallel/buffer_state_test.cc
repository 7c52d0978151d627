#include "parallel/buffer_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "comm/world.h"

namespace shoal {
namespace {

Buffer Filled(const std::string& name, int64_t size, float value) {
  Buffer buffer{name, Tensor::Zeros({size}, DType::kF32)};
  std::fill_n(buffer.value.data<float>(), size, value);
  return buffer;
}

TEST(BufferState, BecomesTheMeanOverRanks) {
  const absl::Status status = RunThreadRanks(3, {}, [](int rank, Communicator& world) {
    Buffer a = Filled("a", 2, static_cast<float>(rank)), b = Filled("b", 3, static_cast<float>(10 * rank));
    BufferState state({&a, &b});
    const absl::Status averaged = state.AverageOverRanks(world);
    EXPECT_THAT(a.value.span<float>(), testing::Each(testing::FloatEq(1)));
    EXPECT_THAT(b.value.span<float>(), testing::Each(testing::FloatEq(10)));
    return averaged;
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(BufferState, ForgetsWhatASkippedStepMadeOfIt) {
  Buffer a = Filled("a", 2, 5);
  BufferState state({&a});
  state.Remember();
  std::fill_n(a.value.data<float>(), 2, std::numeric_limits<float>::quiet_NaN());
  state.Restore();
  EXPECT_THAT(a.value.span<float>(), testing::Each(testing::FloatEq(5)));
}

}  // namespace
}  // namespace shoal
