// Schedules and guards.
#include "optim/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/guard.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

TEST(Schedule, WarmsUpAndFollowsItsShape) {
  config::ScheduleConfig s;
  s.mutable_warmup()->set_steps(4);
  config::Duration total;
  total.set_steps(24);
  const auto at = [&](int64_t step) { return ScheduleFactor(s, {.steps = step}, total); };
  EXPECT_DOUBLE_EQ(at(0), 0.25);
  EXPECT_DOUBLE_EQ(at(3), 1);
  EXPECT_DOUBLE_EQ(at(4), 1);
  EXPECT_DOUBLE_EQ(at(14), 0.55);
  EXPECT_NEAR(at(24), 0.1, 1e-12);
  s.set_shape(config::ScheduleConfig::LINEAR);
  EXPECT_DOUBLE_EQ(at(14), 0.55);
  s.set_shape(config::ScheduleConfig::WSD);
  EXPECT_DOUBLE_EQ(at(20), 1);
  EXPECT_DOUBLE_EQ(at(22), 0.55);
  s.set_shape(config::ScheduleConfig::CONSTANT);
  EXPECT_DOUBLE_EQ(at(24), 1);
  total.set_tokens(1000);
  s.set_shape(config::ScheduleConfig::LINEAR);
  EXPECT_DOUBLE_EQ(ScheduleFactor(s, {.steps = 10, .tokens = 500}, total), 0.55);
}

TEST(Guard, SkipsThenGivesUp) {
  config::GuardConfig config;
  config.set_max_skipped(2);
  config.set_z_score(6);
  config.set_z_window(16);
  Guard guard(config);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(*guard.Check(3 + 0.01 * (i % 3), 1), "");
  EXPECT_THAT(*guard.Check(9, 1), testing::HasSubstr("loss 9 is more than 6 deviations out"));
  EXPECT_THAT(*guard.Check(std::nan(""), 1), testing::HasSubstr("not finite"));
  const auto last = guard.Check(3, INFINITY);
  EXPECT_EQ(ExitCodeFor(last.status()), ExitCode::kDiverged);
  EXPECT_EQ(*Guard(config).Check(3, 1), "");
}

}  // namespace
}  // namespace shoal
