// FileSystem: what checkpoints, datasets and run directories do to disks, behind one interface, so that tests can
// inject faults (short writes, full disk, lost unsynced data, failed renames).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// A file open for writing, from its beginning. Not thread-safe.
class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes; unsynced data may be lost
  virtual absl::Status Append(absl::string_view data) = 0;
  virtual absl::Status Sync() = 0;  // fsync
  virtual absl::Status Close() = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) = 0;  // truncates
  virtual absl::StatusOr<std::string> Read(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status MakeDirs(const std::string& path) = 0;
  virtual absl::Status RemoveAll(const std::string& path) = 0;
  virtual absl::Status SyncDir(const std::string& path) = 0;
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) = 0;  // names, sorted
  virtual bool Exists(const std::string& path) = 0;
};

// The real one; errors carry the path and the system's words. ENOSPC and EDQUOT are EnvironmentError, a missing file
// NotFound.
FileSystem& PosixFiles();

// Writes `data` to path.tmp, syncs, renames over `path`, syncs the directory: readers see the old file or the new one.
absl::Status WriteFileAtomically(FileSystem& files, const std::string& path, absl::string_view data);

}  // namespace shoal
