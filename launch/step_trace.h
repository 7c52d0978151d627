// The Chrome trace of some steps (log.trace), and who else looks at a step's spans.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "runtime/obs/span.h"
#include "runtime/obs/trace.h"
#include "runtime/runtime.pb.h"

namespace shoal {

class StepTrace {
 public:
  // `log` and `world` outlive it. `others` (null: nobody) get the spans of steps that are not traced; without a
  // `run_dir` none are.
  StepTrace(const config::LogConfig& log, std::string run_dir, std::string host, Communicator& world, SpanSink* others);
  ~StepTrace();

  // Before each step: on for log.trace_steps steps from the log.trace_first_step-th of this start. Returns what there
  // is to say: that a trace has been written. Collective.
  absl::StatusOr<std::string> BeforeStep();
  // Writes what is being traced; likewise.
  absl::StatusOr<std::string> End();

  SpanSink* spans() const { return trace_ != nullptr ? trace_.get() : others_; }  // null: nobody looks
  // A phase of the step that began at `start` and ends now; bytes > 0: work that calibrations know.
  void Phase(const char* name, double start, double bytes) const;

 private:
  const config::LogConfig& log_;
  const std::string run_dir_, host_;
  Communicator& world_;
  SpanSink* const others_;
  int64_t steps_ = 0;  // begun
  std::unique_ptr<Trace> trace_;
};

}  // namespace shoal
