#include "launch/step_trace.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/clock.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {

StepTrace::StepTrace(const config::LogConfig& log, std::string run_dir, std::string host, Communicator& world,
                     SpanSink* others)
    : log_(log), run_dir_(std::move(run_dir)), host_(std::move(host)), world_(world), others_(others) {}
StepTrace::~StepTrace() { world_.set_spans(nullptr); }

absl::StatusOr<std::string> StepTrace::BeforeStep() {
  if (!log_.trace() || run_dir_.empty()) return "";
  ++steps_;
  if (steps_ == log_.trace_first_step()) {
    SHOAL_ASSIGN_OR_RETURN(const double offset, ClockOffset(world_));
    trace_ = std::make_unique<Trace>(world_.rank(), host_, offset);
    world_.set_spans(trace_.get());
  }
  if (steps_ == int64_t{log_.trace_first_step()} + log_.trace_steps()) return End();
  return "";
}

absl::StatusOr<std::string> StepTrace::End() {
  if (trace_ == nullptr) return "";
  world_.set_spans(nullptr);
  const absl::Status written = trace_->Write(PosixFiles(), run_dir_);
  trace_ = nullptr;
  SHOAL_RETURN_IF_ERROR(written);
  SHOAL_RETURN_IF_ERROR(world_.Barrier({.tag = "trace"})->Wait());
  if (world_.rank() == 0) SHOAL_RETURN_IF_ERROR(JoinTraces(PosixFiles(), run_dir_, world_.size()));
  return absl::StrCat("trace: ", run_dir_, "/trace/all.json; ui.perfetto.dev opens it");
}

void StepTrace::Phase(const char* name, double start, double bytes) const {
  SpanSink* const sink = spans();
  if (sink == nullptr) return;
  Span span;
  span.name = name;
  span.start = start;
  span.seconds = SteadySeconds() - start;
  span.bytes = bytes;
  sink->Add(span);
}

}  // namespace shoal
