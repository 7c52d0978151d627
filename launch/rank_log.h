// logs/rank-N.log of a run directory: what a rank has to say, one fact a line, with its time. Lines of glog (warnings,
// failed checks) go there too.
#pragma once

#include <glog/logging.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// glog writes to standard error and to RankLogs, never to files of its own. Call once, first thing in main.
void InitLogging(const char* program);
// From now on only errors reach standard error: what ranks other than 0 do.
void OnlyErrorsToStandardError();

class RankLog : public google::LogSink {
 public:
  // Goes on at the end of the file that an earlier start left. glog's lines of a process with several thread ranks go
  // to the rank whose thread says them; those of helper threads to every rank.
  static absl::StatusOr<std::unique_ptr<RankLog>> Open(const std::string& run_dir, int rank);
  ~RankLog() override;

  // "2026-11-24T20:15:22Z rank 3: TEXT". Thread-safe. A line that cannot be written is lost: a full disk ends a run
  // elsewhere, where it loses results.
  void Line(absl::string_view text);
  void send(google::LogSeverity severity, const char* full_filename, const char* base_filename, int line,
            const google::LogMessageTime& time, const char* message, size_t length) override;

 private:
  RankLog(int rank, std::FILE* file) : rank_(rank), file_(file) {}
  const int rank_;
  std::FILE* const file_;
  std::mutex mutex_;
};

}  // namespace shoal
