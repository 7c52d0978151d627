#include "launch/console.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "launch/rank_log.h"
#include "runtime/base/file_system.h"

namespace shoal {
namespace {

TEST(Console, DrawsABarBelowTheLinesOnATerminalOnly) {
  std::ostringstream terminal, pipe;
  {
    Console drawn(terminal, Console::Kind::kTerminal), plain(pipe, Console::Kind::kPlain);
    for (Console* console : {&drawn, &plain}) {
      console->Line("step 1");
      console->Bar(0.25, 90);
      console->Line("step 2");
    }
  }
  EXPECT_EQ(pipe.str(), "step 1\nstep 2\n");
  const std::string bar = "[##########..............................]  25% | ETA 1m30s";
  EXPECT_EQ(terminal.str(), "step 1\n\r\033[K" + bar + "\r\033[Kstep 2\n" + bar + "\r\033[K");
}

TEST(RankLog, KeepsLinesOfEveryStartAndOfGlog) {
  const std::string run = testing::TempDir() + "/rank_log";
  std::filesystem::remove_all(run);
  for (int start = 0; start < 2; ++start) {
    auto log = RankLog::Open(run, 3);
    ASSERT_TRUE(log.ok()) << log.status();
    (*log)->Line("starts");
    LOG(WARNING) << "the disk is slow";
  }
  const std::string text = *PosixFiles().Read(run + "/logs/rank-3.log");
  EXPECT_THAT(text, testing::MatchesRegex(
                        "(.*Z rank 3: starts\n.*Z rank 3: WARNING console_test.cc:.* the disk is slow\n){2}"));
}

}  // namespace
}  // namespace shoal
