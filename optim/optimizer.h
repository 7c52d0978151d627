// Optimizer: updates shards of named tensors in place. The same code serves every ZeRO stage: it sees only pieces.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "optim/groups.h"
#include "optim/optim.pb.h"
#include "optim/owner_sum.h"
#include "parallel/sharder.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// One rank's part of one parameter: elements [begin, end) of the flattened tensor. All tensors are 1-D of end - begin
// elements.
struct OptimizerPiece {
  const Param* param = nullptr;
  int64_t begin = 0, end = 0;
  Tensor master;              // fp32 weights, updated in place
  Tensor grad;                // fp32, summed over ranks; Step may overwrite it
  std::vector<Tensor> state;  // f32 or bf16, in the order of Optimizer::state_names(param); zeroed at start
};

// What one rank updates, and state that is not per element.
struct OptimizerShard {
  absl::Span<OptimizerPiece> pieces;
  absl::Span<double> scalars;  // in the order of Optimizer::scalar_names(); equal on all ranks; zeroed at start
};

// Everything about one step that is equal on all ranks.
struct OptimizerStep {
  int64_t step = 0;          // 1 at the first update; counts only updates that were done
  double learning_rate = 0;  // scheduled; groups and width rules multiply it
  double grad_scale = 1;     // gradients are multiplied by it: clipping factor / loss scale
  double grad_norm = 0;      // of all gradients together, before grad_scale; what the trainer clips by
  double schedule = 1;       // the schedule's factor: learning_rate / its peak
  double batch_ratio = 1;    // this step's batch / optim.reference_batch (BatchRatio)
  double time = 0;           // sum of batch_ratio over all updates, this one included; step without reference_batch
  uint64_t seed = 0;         // of the run: stochastic rounding
};

// What an update works with.
struct OptimizerEnv {
  ThreadPool& pool;
  OwnerSum& owners;  // of the ranks among which tensors are cut
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual ShardGranularity granularity() const { return ShardGranularity::kElement; }
  // Moments of one parameter, one value per element each: "exp_avg", "exp_avg_sq".
  virtual std::vector<std::string> state_names(const Param& param) const = 0;
  // Values that are not per element, by their full names: "blocks.0.up.weight/gradient_noise".
  virtual std::vector<std::string> scalar_names() const { return {}; }
  // Bytes of an element that a second pass over it reads or writes again.
  virtual int64_t second_pass_bytes() const { return 0; }
  // Time of one parameter's update relative to others', for sharing whole tensors out among owners.
  virtual double UpdateCost(const Param& param) const { return static_cast<double>(param.size()); }

  // Updates all pieces. Collective over env.owners where the optimizer needs norms of whole tensors, and its only error
  // is that sum's. Elementwise optimizers give the same bits for any cutting and any number of threads. Those that use
  // norms (LAMB, LARS) do so for any number of threads, and for other cuttings wherever fp64 sums in another order
  // round to the same float ratio: all but about one in 10^8.
  virtual absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) = 0;

  const GroupTable& groups() const { return groups_; }
  DType moment_type() const { return moment_type_; }

 protected:
  Optimizer(GroupTable groups, DType moment_type) : groups_(std::move(groups)), moment_type_(moment_type) {}
  const ParamOptions& OptionsOf(const OptimizerPiece& piece) const { return groups_.rows[piece.param->id]; }

 private:
  GroupTable groups_;
  DType moment_type_;
};

// Checks the optimizer's options alone: InvalidArgument lists what is out of range and what does not apply to it.
absl::Status CheckOptimizer(const config::OptimConfig& config);

// The optimizer that `config` names, for `params` (by id, not owned, outliving it) of a model of this scale. Errors of
// CheckOptimizer and ResolveGroups. One table in registry.cc.
absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const config::OptimConfig& config,
                                                         absl::Span<const Param* const> params,
                                                         const ModelScale& scale);

// "LAMB", "Muon": checkpoints hold it as "optimizer.kind".
std::string OptimizerName(const config::OptimConfig& config);

// What a step of `samples` and `tokens` is of optim.reference_batch; 1 when that is not set.
double BatchRatio(const config::OptimConfig& config, int64_t samples, int64_t tokens);

}  // namespace shoal
