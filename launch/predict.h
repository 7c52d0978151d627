// What a job needs before it runs: a dry run of its largest micro-batch on the meta device.
#pragma once

#include <cstdint>

#include "launch/job.pb.h"
#include "runtime/base/thread_pool.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/dtype.h"

namespace shoal {

struct Prediction {
  int64_t weights = 0, gradients = 0, masters = 0, optimizer = 0;  // bytes of one rank
  int64_t activations = 0;   // the arena's peak: frames, live values and workspace of the largest micro-batch
  int64_t saved = 0;         // of these, what forward keeps for backward
  int64_t program = 0;       // what the program itself has resident
  int64_t checkpoint = 0;    // the copy of the state that a checkpoint is written from
  int64_t micro_tokens = 0;  // of the largest micro-batch
  CostSheet cost;            // of one such micro-batch, forward and backward
  int64_t total() const { return weights + gradients + masters + optimizer + activations + checkpoint + program; }
};
// `job` is resolved. The largest micro-batch is full of sequences of data.max_tokens.
Prediction PredictMemory(const config::Job& job, int ranks);

// FLOP/s of a square product of `dtype` (f32 or bf16) on this pool, the best of 50 ms.
double MeasureProductPeak(ThreadPool& pool, DType dtype);

}  // namespace shoal
