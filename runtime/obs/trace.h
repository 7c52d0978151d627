// Trace: a rank's spans as Chrome trace events (JSON), which ui.perfetto.dev and chrome://tracing open.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/file_system.h"
#include "runtime/obs/span.h"

namespace shoal {

class Trace : public SpanSink {
 public:
  // The process row is named "rank N (host)". `clock_offset`: seconds to add to this host's SteadySeconds to get rank
  // 0's, so that all ranks' files share one clock (comm/clock.h).
  Trace(int rank, const std::string& host, double clock_offset);
  void Add(const Span& span) override;
  // trace/rank-N.json below `run_dir`: valid by itself, one event per line.
  absl::Status Write(FileSystem& files, const std::string& run_dir) const;

 private:
  const int rank_;
  const double offset_;
  mutable std::mutex mutex_;
  std::string events_;
  int64_t next_id_ = 0;  // of comm spans, which overlap and so are async events
};

// All ranks' files joined as trace/all.json.
absl::Status JoinTraces(FileSystem& files, const std::string& run_dir, int ranks);

}  // namespace shoal
