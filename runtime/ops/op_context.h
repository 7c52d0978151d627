// What every op needs besides its tensors: the threads to run on, and the sheet on which a dry run writes its costs.
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"

namespace shoal {

// Counts of one execution. On the meta device ops only add to this; on a real device they compute and add nothing.
struct CostSheet {
  double matmul_flops = 0;     // 2*M*N*K of every GEMM
  double attention_flops = 0;  // of attention's GEMMs, causal blocks only
  double bytes_moved = 0;      // read + written by everything that is not a GEMM
  double comm_bytes = 0;       // sent per rank
  double workspace_bytes = 0;  // largest temporary of any op
};

struct OpContext {
  ThreadPool* pool = nullptr;  // never null on a real device; not owned
  CostSheet* cost = nullptr;   // null except in dry runs; not owned
};

}  // namespace shoal
