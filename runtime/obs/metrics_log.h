// metrics.jsonl: one JSON object per step, appended as it happens.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/obs/step_record.h"

namespace shoal {

class MetricsLog {
 public:
  // Continues the file at `path`; records of steps after `resumed_step` and a torn last line are dropped first.
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& path, int64_t resumed_step);
  ~MetricsLog();
  // Unsynced: a crash of the machine may lose the last lines, a crash of the process none.
  absl::Status Write(const StepRecord& record);

 private:
  MetricsLog(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  std::string path_;
  std::FILE* file_;
};

}  // namespace shoal
