#include "runtime/device/stream.h"

namespace shoal {

void HostEvent::Wait() const {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return Done(); });
}

void HostEvent::Set() {
  const std::lock_guard<std::mutex> lock(mutex_);
  done_.store(true, std::memory_order_release);
  changed_.notify_all();
}

EventPtr DoneEvent() {
  auto event = std::make_shared<HostEvent>();
  event->Set();
  return event;
}

}  // namespace shoal
