// Optimizer: updates shards of named tensors in place. The same code serves every ZeRO stage: it sees only pieces.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "optim/optim.pb.h"
#include "parallel/sharder.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// One rank's part of one parameter: elements [begin, end) of the flattened tensor. All tensors are f32 and 1-D of end -
// begin elements.
struct OptimizerPiece {
  const Param* param = nullptr;
  int64_t begin = 0, end = 0;
  Tensor master;              // fp32 weights, updated in place
  Tensor grad;                // fp32, summed over ranks; not changed
  std::vector<Tensor> state;  // moments, in the order of Optimizer::state_names(); zeroed at start
};

// Everything about one step that is equal on all ranks.
struct OptimizerStep {
  int64_t step = 0;          // 1 at the first update; counts only updates that were done
  double learning_rate = 0;  // scheduled
  double grad_scale = 1;     // gradients are multiplied by it: clipping factor / loss scale
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual ShardGranularity granularity() const = 0;
  virtual std::vector<std::string> state_names() const = 0;  // "exp_avg", "exp_avg_sq"; one f32 per element each
  // Updates all pieces. Same bits for any way of cutting tensors into pieces and any number of threads.
  virtual void Step(ThreadPool& pool, const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) = 0;
};

// The optimizer that `config` names, with its options checked: InvalidArgument lists what is out of range. One table in
// registry.cc.
absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const config::OptimConfig& config);

}  // namespace shoal
