#include "runtime/base/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(Regex, FindsAnywhereAndSaysWhatIsWrong) {
  const auto regex = Regex::Compile("^blocks\\.\\d+\\.(mlp|attention)\\.(?!norm)");
  ASSERT_TRUE(regex.ok()) << regex.status();
  EXPECT_TRUE(regex->Matches("blocks.12.mlp.up.weight"));
  EXPECT_FALSE(regex->Matches("blocks.12.mlp.norm.weight"));
  EXPECT_FALSE(regex->Matches("tokens.weight"));
  EXPECT_TRUE(Regex::Compile("norm")->Matches("final_norm.weight"));
  EXPECT_THAT(std::string(Regex::Compile("a(b").status().message()),
              testing::HasSubstr("'a(b' is no regular expression: missing closing parenthesis at character 3"));
}

}  // namespace
}  // namespace shoal
