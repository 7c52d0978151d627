// RankContext: what one rank is and owns. Passed explicitly; there are no process globals, so ranks can be threads of
// one process.
#pragma once

#include <memory>
#include <string>

#include "runtime/base/thread_pool.h"

namespace shoal {

struct RankContext {
  int rank = 0;
  int size = 1;
  std::string host;
  std::unique_ptr<ThreadPool> pool;  // all CPU kernels of this rank
};

}  // namespace shoal
