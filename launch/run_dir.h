// The run directory: one writer, one state.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "launch/folder_lock.h"
#include "launch/job.pb.h"

namespace shoal {

class RunDir {
 public:
  // Makes the folder and takes its lock, until this object goes. EnvironmentError when another process holds it.
  static absl::StatusOr<std::unique_ptr<RunDir>> Open(const std::string& path);
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  // "running", "finished", "stopped at step N", "failed: ...".
  absl::Status WriteState(const std::string& state);
  // The job of an earlier start, if any.
  absl::StatusOr<bool> ReadJob(config::Job* job) const;
  absl::Status WriteJob(const config::Job& job);
  absl::Status WriteEnvironment(int ranks, int threads_per_rank, const std::string& compute);

 private:
  RunDir(std::string path, std::unique_ptr<FolderLock> lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  std::unique_ptr<FolderLock> lock_;
};

// The job of the run directory `run`, or of the one that the folder `checkpoint` lies below.
absl::StatusOr<config::Job> JobOfRun(const std::string& run, const std::string& checkpoint);

std::string BuildId();  // version, compiler, libraries: equal on all ranks of a job

}  // namespace shoal
