#include "runtime/base/thread_pool.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace shoal {
namespace {

thread_local bool in_task = false;
constexpr int kYields = 200;  // a few tens of microseconds: as long as the gap between two kernels of a layer

}  // namespace

struct ThreadPool::Shared {
  std::mutex mutex;
  std::condition_variable wake, done;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  const absl::FunctionRef<void(int64_t)>* fn = nullptr;  // written before generation is raised
  int64_t tasks = 0;
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};  // workers that have not finished the current generation
  absl::AnyInvocable<void()> on_start;
  std::mutex start_mutex;

  void Drain() {
    in_task = true;
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) (*fn)(i);
    in_task = false;
  }
};

ThreadPool::ThreadPool(int threads, absl::AnyInvocable<void()> on_start) : shared_(std::make_unique<Shared>()) {
  shared_->on_start = std::move(on_start);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->stop = true;
    shared_->generation.fetch_add(1);
  }
  shared_->wake.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Work() {
  Shared& s = *shared_;
  if (s.on_start != nullptr) {
    std::lock_guard<std::mutex> lock(s.start_mutex);
    s.on_start();
  }
  uint64_t seen = 0;
  while (true) {
    for (int i = 0; i < kYields && s.generation.load(std::memory_order_acquire) == seen; ++i) std::this_thread::yield();
    if (s.generation.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(s.mutex);
      s.wake.wait(lock, [&] { return s.generation.load(std::memory_order_acquire) != seen; });
    }
    seen = s.generation.load(std::memory_order_acquire);
    if (s.stop) return;
    s.Drain();
    if (s.busy.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(s.mutex);
      s.done.notify_one();
    }
  }
}

void ThreadPool::Run(int64_t tasks, absl::FunctionRef<void(int64_t)> fn) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1 || in_task) {
    for (int64_t i = 0; i < tasks; ++i) fn(i);
    return;
  }
  Shared& s = *shared_;
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.fn = &fn;
    s.tasks = tasks;
    s.next.store(0);
    s.busy.store(static_cast<int>(workers_.size()));
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.Drain();
  for (int i = 0; i < kYields && s.busy.load(std::memory_order_acquire) != 0; ++i) std::this_thread::yield();
  std::unique_lock<std::mutex> lock(s.mutex);
  s.done.wait(lock, [&] { return s.busy.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> fn) {
  if (n <= 0) return;
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int64_t pieces = std::min<int64_t>(most, threads() == 1 ? 1 : 4 * threads());
  Run(pieces, [&](int64_t i) { fn(n * i / pieces, n * (i + 1) / pieces); });
}

}  // namespace shoal
