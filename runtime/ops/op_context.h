// What every op needs besides its tensors: the threads to run on, the sheet on which a dry run writes its costs, and
// where to report its time.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "runtime/base/thread_pool.h"
#include "runtime/obs/span.h"

namespace shoal {

// Work of one op, or of many together.
struct OpCost {
  double calls = 0;
  double flops = 0;  // of GEMMs: 2*M*N*K; of attention's GEMMs the causal part only; other ops count none
  double bytes = 0;  // read and written, each tensor once
  OpCost& operator+=(const OpCost& other) {
    calls += other.calls;
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
};

// Counts of one execution by op ("GeluFwd"; GEMMs by which of their operands are transposed: "Matmul.NT"). On the meta
// device ops only add to this; on a real device they compute and add nothing.
struct CostSheet {
  std::map<std::string, OpCost> ops;
  double flops() const {
    double sum = 0;
    for (const auto& [name, cost] : ops) sum += cost.flops;
    return sum;
  }
};

struct OpContext {
  ThreadPool* pool = nullptr;  // never null on a real device; not owned
  CostSheet* cost = nullptr;   // null except in dry runs; not owned
  SpanSink* spans = nullptr;   // null: untimed; not owned
};

}  // namespace shoal
