// Stream: work that runs in the order it was enqueued. Event: a point in that order. Together they put the kernels,
// copies and collectives of several streams in order without stopping the host.
//
// Contract, the same on every device:
// * One thread at a time submits to a stream. Work of one stream runs one after the other; between streams only events
// order it.
// * What work reads and writes belongs to it until an event recorded behind it is done.
// * An event is set once and stays so; what ran before it is visible to whoever saw it done. Events outlive their
// stream.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "absl/functional/any_invocable.h"
#include "absl/strings/string_view.h"

namespace shoal {

// Thread-safe.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool Done() const = 0;
  virtual void Wait() const = 0;  // blocks the calling thread until done
};
using EventPtr = std::shared_ptr<const Event>;

// An event that the host sets.
class HostEvent : public Event {
 public:
  bool Done() const override { return done_.load(std::memory_order_acquire); }
  void Wait() const override;
  void Set();  // the setter keeps the event alive until this returns

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::atomic<bool> done_{false};
};

// An event that is done.
EventPtr DoneEvent();

class Stream {
 public:
  // Lets what was enqueued run to its end.
  virtual ~Stream() = default;
  virtual absl::string_view name() const = 0;  // appears in traces and errors
  // Host streams: runs `fn`, which must not throw, once all that was enqueued before it is done.
  virtual void Enqueue(absl::AnyInvocable<void()> fn) = 0;
  // Done once all that was enqueued so far is.
  virtual EventPtr Record() = 0;
  // What is enqueued from now on starts only once `event`, of any stream, is done. An inline stream blocks the caller
  // until then; the others do not.
  virtual void WaitFor(EventPtr event) = 0;
  // Blocks the calling thread, which is none of the stream's own, until all that was enqueued so far is done.
  virtual void Synchronize() = 0;
};

}  // namespace shoal
