#include "runtime/base/file_system.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "runtime/base/status.h"

namespace shoal {
namespace {

std::string TestFolder() {
  const std::string folder =
      ::testing::TempDir() + "/shoal_fs_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
  EXPECT_TRUE(PosixFiles().RemoveAll(folder).ok());
  EXPECT_TRUE(PosixFiles().MakeDirs(folder).ok());
  return folder;
}

TEST(FileSystem, AtomicWriteReplacesTheWholeFile) {
  const std::string folder = TestFolder();
  ASSERT_TRUE(WriteFileAtomically(PosixFiles(), folder + "/a", "first, longer").ok());
  ASSERT_TRUE(WriteFileAtomically(PosixFiles(), folder + "/a", "second").ok());
  EXPECT_EQ(PosixFiles().Read(folder + "/a").value(), "second");
  EXPECT_EQ(PosixFiles().List(folder).value(), std::vector<std::string>({"a"}));
}

TEST(FileSystem, ErrorsNameThePathAndTheClass) {
  const std::string folder = TestFolder();
  const absl::Status missing = PosixFiles().Read(folder + "/none").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("/none: No such file"), absl::string_view::npos) << missing;
  EXPECT_EQ(ExitCodeFor(missing), ExitCode::kData);
  ASSERT_TRUE(WriteFileAtomically(PosixFiles(), folder + "/file", "x").ok());
  EXPECT_EQ(ExitCodeFor(PosixFiles().MakeDirs(folder + "/file/below")), ExitCode::kEnvironment);
}

TEST(FileSystem, FullDiskIsAnEnvironmentError) {
  auto file = PosixFiles().Create("/dev/full");
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status full = (*file)->Append("data");
  EXPECT_EQ(ExitCodeFor(full), ExitCode::kEnvironment);
  EXPECT_NE(full.message().find("free space"), absl::string_view::npos) << full;
}

}  // namespace
}  // namespace shoal
