#include "runtime/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

namespace shoal {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(tasks);
      pool.Run(tasks, [&](int64_t i) { hits[i].fetch_add(1); });
      for (int64_t i = 0; i < tasks; ++i)
        EXPECT_EQ(hits[i], 1) << "task " << i << " of " << tasks << ", " << threads << " threads";
    }
  }
}

TEST(ThreadPool, ParallelForCoversTheRangeInDisjointPieces) {
  ThreadPool pool(3);
  for (const int64_t n : {0, 1, 5, 64, 1009}) {
    std::vector<int> seen(n, 0);
    pool.ParallelFor(n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[i];
    });
    EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), int64_t{0}), n);
  }
}

TEST(ThreadPool, NestedCallsRunInline) {
  ThreadPool pool(2);
  std::atomic<int> count{0};
  pool.Run(4, [&](int64_t) { pool.Run(4, [&](int64_t) { count.fetch_add(1); }); });
  EXPECT_EQ(count, 16);
}

TEST(ThreadPool, ManySmallRunsDoNotLoseAWakeUp) {
  ThreadPool pool(2);
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 20000; ++i) pool.Run(2, [&](int64_t task) { sum.fetch_add(task); });
  EXPECT_EQ(sum, 20000);
}

}  // namespace
}  // namespace shoal
