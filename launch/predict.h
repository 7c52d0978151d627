// What a job needs and takes per rank, worked out on the meta device before anything is allocated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "launch/job.pb.h"
#include "launch/workload.h"
#include "optim/optimizer_state.h"
#include "parallel/data_parallel.h"
#include "parallel/mesh.h"
#include "runtime/base/thread_pool.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/dtype.h"

namespace shoal {

struct Prediction {
  int64_t weights = 0, gradients = 0, masters = 0, optimizer = 0;  // bytes this rank holds
  int64_t noise = 0;      // gradients as they were before a micro-batch, where noise is measured between a lone rank's
  int64_t averages = 0;   // of weights and statistics (optim.ema)
  int64_t residuals = 0;  // what gradient codes leave behind
  int64_t activations = 0;    // frames, live values and workspace of the largest micro-batch
  int64_t saved = 0;          // of these, what forward keeps for backward
  int64_t gathered = 0;       // whole weights at once, with ZeRO 3
  int64_t step = 0;           // gradients, activations and gathered weights: they share the arena, whose peak this is
  int64_t program = 0;        // what the program itself has resident
  int64_t communication = 0;  // what the largest reduction receives into
  int64_t checkpoint = 0;     // the copy of the state that a checkpoint is written from
  int64_t images_ahead = 0;   // the loader's ring: prefetch_steps of the largest batch and the one in use
  int64_t micro_rows = 0;     // tokens or images of the largest micro-batch
  int64_t total() const {
    return weights + masters + optimizer + noise + averages + residuals + step + communication + checkpoint + program +
           images_ahead;
  }
};
// `job` is resolved. kNo: a run that leaves no checkpoints (benchmarks).
enum class Checkpoints : uint8_t { kNo, kYes };
Prediction PredictMemory(const config::Job& job, int ranks, Checkpoints checkpoints);

// Bytes of a sequence of `tokens` on one rank: frames, live values and workspace of its forward and backward.
int64_t ActivationBytes(const config::Job& job, int64_t tokens);

// One step of one rank by op: forward and backward of these micro-batches, then what the trainer reports as "scalars",
// "reduce", "SumOfSquares", "optimizer" and "publish" (launch/trainer.cc).
CostSheet StepCost(const config::Job& job, int ranks, absl::Span<const BatchShape> micro_batches);

// Bytes that one step moves outside the model's ops, by the names of the trainer's spans.
std::map<std::string, double> StepTraffic(const DataParallel& dp, const OptimizerState& state, const Mesh& mesh);

// FLOP/s of a square product of `dtype` (f32 or bf16) on this pool, the best of 50 ms.
double MeasureProductPeak(ThreadPool& pool, DType dtype);

}  // namespace shoal
