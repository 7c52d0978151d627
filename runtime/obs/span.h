// Spans: what ran, when, for how long. Ops, collectives and the phases of a step report them to a sink, if one is set:
// a trace file, or the measurements of `shoal calibrate`.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace shoal {

// Seconds on this host's steady clock.
inline double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Span {
  enum class Track : uint8_t { kMain, kComm };  // the threads of a rank that a reader of traces looks at
  absl::string_view name;                       // valid during SpanSink::Add
  absl::string_view note;                       // likewise: a collective's tag
  Track track = Track::kMain;
  double start = 0, seconds = 0;  // SteadySeconds
  double flops = 0, bytes = 0;    // of an op as its dry run counts them; of a collective, bytes of its tensor
};

// Thread-safe.
class SpanSink {
 public:
  virtual ~SpanSink() = default;
  virtual void Add(const Span& span) = 0;
};

// Reports its own lifetime to a sink; to null, nothing.
class ScopedSpan {
 public:
  ScopedSpan(SpanSink* sink, absl::string_view name, absl::string_view note = "") : sink_(sink) {
    if (sink_ == nullptr) return;
    span_.name = name;
    span_.note = note;
    span_.start = SteadySeconds();
  }
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;
  ~ScopedSpan() {
    if (sink_ == nullptr) return;
    span_.seconds = SteadySeconds() - span_.start;
    sink_->Add(span_);
  }

 private:
  SpanSink* sink_;
  Span span_;
};

}  // namespace shoal
