// What the planner counts with, where it is a formula and no measurement.
#include "comm/exchange_costs.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(ExchangeCosts, CodecsTakeALongerTimeOnAShareOfACore) {
  ExchangeCosts costs{.ranks = 4, .codecs = {{"q4", {.encode = {0, 1e-9}, .decode = {0, 2e-9}}}}};
  const auto q4 = MakeCodec("q4").value();
  // Encoded is all; decoded are three quarters as an owner, and all.
  const double cpu = 1e6 * 1e-9 + 1.75e6 * 2e-9;
  EXPECT_DOUBLE_EQ(costs.CodecCpuSeconds(*q4, 1e6, ExchangeCosts::Half::kAll), cpu);
  EXPECT_DOUBLE_EQ(costs.CodecCpuSeconds(*q4, 1e6, ExchangeCosts::Half::kScatter), 0.75e6 * 3e-9);
  for (const auto& [delay, wall] : {std::pair{0.0, cpu}, {1.0, cpu}, {1 / 0.45, cpu / 0.45}}) {
    costs.delay_per_cpu_second = delay;
    EXPECT_DOUBLE_EQ(costs.CodecSeconds(*q4, 1e6, ExchangeCosts::Half::kAll), wall);
    EXPECT_DOUBLE_EQ(costs.DelaySeconds(*q4, 1e6, 1e5, ExchangeCosts::Half::kAll), delay * cpu);
  }
}

}  // namespace
}  // namespace shoal
