#include "runtime/base/str.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(DidYouMean, FindsTypingErrorsAndRefusesFarWords) {
  const std::vector<std::string> fields = {"learning_rate", "weight_decay", "momentum"};
  EXPECT_EQ(DidYouMean("learningrate", fields), "learning_rate");
  EXPECT_EQ(DidYouMean("weigth_decay", fields), "weight_decay");
  EXPECT_EQ(DidYouMean("banana", fields), "");
  EXPECT_EQ(DidYouMean("", fields), "");
}

TEST(Human, BytesCountsAndDurationsCarryUnits) {
  EXPECT_EQ(HumanBytes(17), "17 B");
  EXPECT_EQ(HumanBytes(12 * 1024), "12.0 KiB");
  EXPECT_EQ(HumanBytes(1.8 * (1 << 30)), "1.8 GiB");
  EXPECT_EQ(HumanCount(950), "950");
  EXPECT_EQ(HumanCount(42100), "42.1k");
  EXPECT_EQ(HumanCount(124439808), "124.44M");
  EXPECT_EQ(HumanDuration(41), "41s");
  EXPECT_EQ(HumanDuration(1500), "25m");
  EXPECT_EQ(HumanDuration(11520), "3h12m");
  EXPECT_EQ(HumanDuration(-3), "0s");
}

}  // namespace
}  // namespace shoal
