// What the planner counts with, where it is a formula and no measurement.
#include "comm/exchange_costs.h"

#include <gtest/gtest.h>

#include "comm/world.h"
#include "runtime/base/status.h"

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

// 1 MiB takes two ranks 84 ms on links of 100 Mbit/s: what was measured there agrees, what memory does does not.
TEST(ExchangeCosts, OfOtherLinksAreFoundOut) {
  CommOptions options;
  options.thread_link_bytes_per_second = 100e6 / 8;
  const absl::Status status = RunThreadRanks(2, options, [&](int, Communicator& world) -> absl::Status {
    for (const auto& [per_byte, agrees] : {std::pair{8e-8, true}, {1e-10, false}, {1e-6, false}}) {
      SHOAL_ASSIGN_OR_RETURN(const LinkCheck links, CheckLinks(world, {.ranks = 2, .all_reduce = {1e-5, per_byte}}));
      EXPECT_EQ(links.agrees, agrees) << links.measured << " s, said " << links.said;
      EXPECT_GT(links.measured, 0.05);
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace shoal
