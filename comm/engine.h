// The progress engine: one thread per rank that advances every pending operation of all its communicators. Operations
// of one communicator run one after the other; those of different communicators side by side. An operation that waits
// for an event of its stream is asked again and again, like a message under way.
#pragma once

#include <atomic>
#include <chrono>
#include <compare>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/flight_recorder.h"
#include "comm/transport.h"
#include "runtime/device/stream.h"
#include "runtime/obs/span.h"

namespace shoal {

class Operation;

// A part of an operation: messages that go side by side, then something to do with what came.
struct Phase {
  struct Message {
    enum class Way : uint8_t { kSend, kRecv } way;
    int peer = 0;  // in the world
    void* data = nullptr;
    int64_t bytes = 0;
  };
  std::vector<Message> messages;
  std::function<absl::Status()> then;  // may be null
  // May be null. Called when the phase begins, to take memory and add messages: operations that wait for their turn
  // then hold no memory to receive into.
  std::function<void(Operation&, Phase&)> prepare;
};

// Memory that operations receive into, used again and again: fresh memory would cost a page fault per 4 KiB in every
// step. Thread-safe; buffers keep the pool alive.
class ScratchPool : public std::enable_shared_from_this<ScratchPool> {
 public:
  std::shared_ptr<char> Take(int64_t bytes);  // not initialised

 private:
  std::mutex mutex_;
  std::multimap<int64_t, std::unique_ptr<char[]>> free_;  // by size
};

class Operation : public Work, public std::enable_shared_from_this<Operation> {
 public:
  bool Done() const override { return finished_.Done(); }
  absl::Status Wait() override;
  void WaitOn(Stream& stream) override;
  double Seconds() const override { return Done() ? seconds_ : 0; }

  // Set before submission.
  std::string op, tag, group;  // "all_reduce", the caller's tag, the communicator's name
  int64_t bytes = 0;
  int64_t sequence = 0;
  int channel = 0;  // of the transport
  absl::Duration deadline;
  EventPtr after;  // may be null; phases start once it is done
  std::vector<Phase> phases;
  std::vector<Tensor> tensors;                 // kept alive
  std::vector<std::shared_ptr<char>> scratch;  // likewise

 private:
  friend class Engine;
  bool Held() const { return after != nullptr && !after->Done(); }
  void Finish(absl::Status status);
  HostEvent finished_;
  std::shared_ptr<std::atomic<int>> waiting_;  // the engine's
  absl::Status status_;                        // written before finished_ is set, like seconds_
  double seconds_ = 0;
  std::chrono::steady_clock::time_point submitted_;
  double begun_ = 0;  // SteadySeconds; 0: not yet
  size_t phase_ = 0;
  bool started_ = false;
  std::vector<std::unique_ptr<Transfer>> transfers_;  // of the present phase; null = through
  int64_t record_ = -1;
};

class Engine {
 public:
  Engine(std::unique_ptr<Transport> transport, std::unique_ptr<FlightRecorder> recorder);
  // Stops the thread. Operations not done are failed, and their memory is kept until the transport is gone.
  ~Engine();

  Transport& transport() { return *transport_; }
  std::shared_ptr<char> Scratch(int64_t bytes) { return scratch_->Take(bytes); }
  // Operations of one queue run one after the other. Collectives of a communicator share one; sends and receives have
  // one per peer and direction, so that two ranks may both send before they receive.
  struct Queue {
    int channel = 0;
    enum class Kind : uint8_t { kCollective, kSend, kRecv } kind = Kind::kCollective;
    int peer = 0;
    auto operator<=>(const Queue&) const = default;
  };
  void Submit(const Queue& queue, std::shared_ptr<Operation> operation);
  // Operations done from now on report a span each, from the progress thread. Null: none. The sink must outlive the
  // engine or a later call with null.
  void set_spans(SpanSink* spans);
  void Poison(const absl::Status& why);
  absl::Status health() const { return transport_->health(); }
  int next_channel() const { return next_channel_; }
  void set_next_channel(int channel) { next_channel_ = channel; }

 private:
  void Loop();
  bool Begin(Operation& operation);    // true when it has begun: it is first in its queue and no event holds it
  bool Advance(Operation& operation);  // true when something moved
  void FailAll(const absl::Status& why);
  std::string Missing(const Operation& operation) const;

  std::unique_ptr<Transport> transport_;
  std::unique_ptr<FlightRecorder> recorder_;
  std::shared_ptr<ScratchPool> scratch_ = std::make_shared<ScratchPool>();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Queue, std::deque<std::shared_ptr<Operation>>> queues_;
  std::vector<std::shared_ptr<Operation>> graveyard_;
  SpanSink* spans_ = nullptr;  // guarded by mutex_, also while it is used
  bool stop_ = false;
  const std::shared_ptr<std::atomic<int>> waiting_ = std::make_shared<std::atomic<int>>(0);  // threads inside of Wait
  std::atomic<int> next_channel_{2};
  std::thread thread_;
};

}  // namespace shoal
