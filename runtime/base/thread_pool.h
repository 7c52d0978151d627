// One pool of CPU threads per rank; it runs all of the rank's kernels. Waiting threads yield, then sleep: nothing
// spins.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"

namespace shoal {

class ThreadPool {
 public:
  // `threads` >= 1 counts the calling thread: a pool of one runs everything inline. `on_start` runs once on each
  // worker.
  explicit ThreadPool(int threads, absl::AnyInvocable<void()> on_start = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs fn(i) for i in [0, tasks), dynamically distributed, and returns when all are done. One caller at a time (the
  // rank's main thread); a call from inside a task runs inline. `fn` must not throw.
  void Run(int64_t tasks, absl::FunctionRef<void(int64_t)> fn);

  // Cuts [0, n) into ranges of at least `grain` items and runs fn(begin, end) on each. Range borders depend only on n,
  // grain and threads().
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> fn);

 private:
  struct Shared;
  void Work();
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> workers_;
};

}  // namespace shoal
