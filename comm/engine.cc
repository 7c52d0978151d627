#include "comm/engine.h"

#include <glog/logging.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shoal {

using Clock = std::chrono::steady_clock;

std::shared_ptr<char> ScratchPool::Take(int64_t bytes) {
  std::unique_ptr<char[]> memory;
  int64_t size = bytes;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // A buffer twice as large as needed would be missed elsewhere.
    if (const auto at = free_.lower_bound(bytes); at != free_.end() && at->first <= 2 * bytes + 4096) {
      size = at->first;
      memory = std::move(at->second);
      free_.erase(at);
    }
  }
  if (memory == nullptr) memory.reset(new char[static_cast<size_t>(std::max<int64_t>(1, size))]);
  return std::shared_ptr<char>(memory.release(), [pool = shared_from_this(), size](char* p) {
    const std::lock_guard<std::mutex> lock(pool->mutex_);
    pool->free_.emplace(size, std::unique_ptr<char[]>(p));
  });
}

absl::Status Operation::Wait() {
  if (!Done() && waiting_ != nullptr) {
    // Not a pointer to the engine, which may be gone when this returns.
    const std::shared_ptr<std::atomic<int>> waiting = waiting_;
    ++*waiting;
    finished_.Wait();
    --*waiting;
  } else {
    finished_.Wait();
  }
  return status_;
}

void Operation::WaitOn(Stream& stream) {
  // Also of a failed operation: what produces its buffers and what follows on `stream` never run side by side.
  if (after != nullptr) stream.WaitFor(after);
  stream.WaitFor(EventPtr(shared_from_this(), &finished_));
}

void Operation::Finish(absl::Status status) {
  status_ = std::move(status);
  seconds_ = std::chrono::duration<double>(Clock::now() - submitted_).count();
  finished_.Set();
}

Engine::Engine(std::unique_ptr<Transport> transport, std::unique_ptr<FlightRecorder> recorder)
    : transport_(std::move(transport)), recorder_(std::move(recorder)), thread_([this] { Loop(); }) {}

Engine::~Engine() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Engine::Submit(const Queue& queue, std::shared_ptr<Operation> operation) {
  operation->submitted_ = Clock::now();
  operation->waiting_ = waiting_;
  if (recorder_ != nullptr)
    operation->record_ =
        recorder_->Enter(operation->group, operation->sequence, operation->op, operation->tag, operation->bytes,
                         operation->Held() ? FlightState::kHeld : FlightState::kEntered);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queues_[queue].push_back(std::move(operation));
  }
  changed_.notify_one();
}

void Engine::set_spans(SpanSink* spans) {
  const std::lock_guard<std::mutex> lock(mutex_);
  spans_ = spans;
}

void Engine::Poison(const absl::Status& why) {
  transport_->Poison(why);
  changed_.notify_one();
}

bool Engine::Begin(Operation& op) {
  if (op.begun_ > 0) return true;
  if (op.Held()) return false;
  op.begun_ = SteadySeconds();
  if (recorder_ != nullptr && op.after != nullptr) recorder_->Begin(op.record_);
  return true;
}

bool Engine::Advance(Operation& op) {
  bool moved = false;
  while (op.phase_ < op.phases.size()) {
    Phase& phase = op.phases[op.phase_];
    if (!op.started_) {
      if (phase.prepare) phase.prepare(op, phase);
      op.transfers_.clear();
      for (const Phase::Message& m : phase.messages) {
        op.transfers_.push_back(m.way == Phase::Message::Way::kSend
                                    ? transport_->Send(m.peer, op.channel, m.data, m.bytes)
                                    : transport_->Recv(m.peer, op.channel, m.data, m.bytes));
      }
      op.started_ = moved = true;
    }
    bool through = true;
    for (auto& transfer : op.transfers_) {
      if (transfer == nullptr) continue;
      if (transfer->Poll()) {
        transfer.reset();
        moved = true;
      } else {
        through = false;
      }
    }
    if (!through) return moved;
    if (phase.then) {
      const absl::Status status = phase.then();
      if (!status.ok()) {
        transport_->Poison(status);
        return true;
      }
    }
    ++op.phase_;
    op.started_ = false;
  }
  return true;
}

// Ranks of which nothing came in the first phase, in which every rank hears from all that must be there.
std::string Engine::Missing(const Operation& op) const {
  if (op.begun_ == 0 && op.Held())
    return "it still waits for work of this rank's own stream (CallOptions::after) and has sent nothing to its peers";
  std::set<int> silent;
  if (op.started_ && op.phase_ < op.phases.size()) {
    const auto& messages = op.phases[op.phase_].messages;
    for (size_t i = 0; i < messages.size() && i < op.transfers_.size(); ++i) {
      if (op.transfers_[i] != nullptr) silent.insert(messages[i].peer);
    }
  }
  if (silent.empty()) return "an earlier operation of the same communicator holds it up";
  return absl::StrCat(silent.size() == 1 ? "rank " : "ranks ", absl::StrJoin(silent, ", "),
                      op.phase_ == 0 ? " never entered" : " entered and did not finish");
}

void Engine::FailAll(const absl::Status& why) {
  for (auto& [key, queue] : queues_) {
    for (auto& op : queue) {
      if (recorder_ != nullptr) recorder_->Leave(op->record_, op->Held() ? FlightState::kHeld : FlightState::kFailed);
      op->Finish(why);
      graveyard_.push_back(std::move(op));  // a peer may still be reading its memory
    }
    queue.clear();
  }
}

void Engine::Loop() {
  int idle = 0;
  for (;;) {
    std::vector<std::pair<Queue, std::shared_ptr<Operation>>> heads;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto pending = [&] {
        for (const auto& [key, queue] : queues_) {
          if (!queue.empty()) return true;
        }
        return false;
      };
      changed_.wait(lock, [&] { return stop_ || pending(); });
      const absl::Status health = transport_->health();
      if (!health.ok() || stop_)
        FailAll(health.ok() ? absl::UnavailableError("the communicator was destroyed with operations pending")
                            : health);
      if (stop_) return;
      for (auto& [key, queue] : queues_) {
        if (!queue.empty()) heads.emplace_back(key, queue.front());
      }
    }
    bool moved = false;
    const auto now = Clock::now();
    for (auto& [key, op] : heads) {
      const bool begun = Begin(*op);
      if (begun) moved |= Advance(*op);
      if (begun && op->phase_ == op->phases.size()) {  // done: what it held may be used again before its Work dies
        {
          const std::lock_guard<std::mutex> lock(mutex_);
          queues_[key].pop_front();
          if (spans_ != nullptr) {
            Span span;
            span.name = op->op;
            span.note = op->tag;
            span.track = Span::Track::kComm;
            span.start = op->begun_;
            span.seconds = SteadySeconds() - op->begun_;
            span.bytes = static_cast<double>(op->bytes);
            spans_->Add(span);
          }
        }
        if (recorder_ != nullptr) recorder_->Leave(op->record_, FlightState::kDone);
        op->transfers_.clear();
        op->phases.clear();
        op->scratch.clear();
        op->tensors.clear();
        op->Finish(absl::OkStatus());
      } else if (op->deadline < absl::InfiniteDuration() && absl::FromChrono(now - op->submitted_) > op->deadline) {
        transport_->Poison(absl::DeadlineExceededError(
            absl::StrCat(op->op, " '", op->tag, "' (#", op->sequence, " of communicator ", op->group, ") on rank ",
                         transport_->rank(), " is not done after ", absl::FormatDuration(op->deadline), ": ",
                         Missing(*op), ". `shoal why-hang RUN` reads the flight records")));
      }
    }
    if (moved) {
      idle = 0;
      continue;
    }
    // Asking takes CPU from who computes: it is done seldom while nobody waits here, and what has not moved for 5 ms is
    // long.
    ++idle;
    const bool awaited = *waiting_ > 0;
    if (idle < (awaited ? 16 : 2)) {
      std::this_thread::yield();
      continue;
    }
    const auto pause = std::chrono::microseconds(awaited ? (idle < 116 ? 50 : 250) : (idle < 27 ? 200 : 1000));
    std::unique_lock<std::mutex> lock(mutex_);
    if (!stop_) changed_.wait_for(lock, pause);
  }
}

}  // namespace shoal
