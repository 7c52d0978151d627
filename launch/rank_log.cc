#include "launch/rank_log.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

thread_local int rank_of_thread = -1;  // which rank's log this thread's lines of glog belong to; -1: all

}  // namespace

void InitLogging(const char* program) {
  for (int severity = 0; severity < google::NUM_SEVERITIES; ++severity) google::SetLogDestination(severity, "");
  FLAGS_stderrthreshold = google::GLOG_INFO;
  google::InitGoogleLogging(program);
}

void OnlyErrorsToStandardError() { FLAGS_stderrthreshold = google::GLOG_ERROR; }

absl::StatusOr<std::unique_ptr<RankLog>> RankLog::Open(const std::string& run_dir, int rank) {
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(run_dir + "/logs"));
  const std::string path = absl::StrCat(run_dir, "/logs/rank-", rank, ".log");
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) return EnvironmentError(absl::StrCat(path, ": ", std::strerror(errno)));
  auto log = std::unique_ptr<RankLog>(new RankLog(rank, file));
  rank_of_thread = rank;
  google::AddLogSink(log.get());
  return log;
}

RankLog::~RankLog() {
  google::RemoveLogSink(this);
  std::fclose(file_);
}

void RankLog::Line(absl::string_view text) {
  const std::string line = absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
                                        " rank ", rank_, ": ", text, "\n");
  const std::lock_guard<std::mutex> lock(mutex_);
  std::fwrite(line.data(), 1, line.size(), file_);
  std::fflush(file_);
}

void RankLog::send(google::LogSeverity severity, const char*, const char* base_filename, int line,
                   const google::LogMessageTime&, const char* message, size_t length) {
  if (rank_of_thread >= 0 && rank_of_thread != rank_) return;
  Line(absl::StrCat(google::GetLogSeverityName(severity), " ", base_filename, ":", line, " ",
                    absl::string_view(message, length)));
}

}  // namespace shoal
