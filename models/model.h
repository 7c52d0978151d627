// Model: what a trainer trains. A module that takes a batch's input and adds the losses of its labels.
#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "models/models.pb.h"
#include "parallel/parallel.pb.h"
#include "runtime/module/module.h"

namespace shoal {

// Contract of Forward and Backward beyond Module's: Mode::kEval, Forward adds "loss" (sum over rows with a label,
// weight = their number); Mode::kTrain, Backward does, together with the gradients times ctx.grad_scale(). Models that
// classify add "correct" likewise: how many rows' likeliest class is the label. Backward's argument is Forward's
// result.
class Model : public Module {
 public:
  // By id (AssignIds).
  const std::vector<const Param*>& params() const { return params_; }
  // Running statistics, in definition order.
  const std::vector<Buffer*>& buffers() const { return buffers_; }
  int64_t parameter_count() const;
  // FLOPs of training on a batch of sequences of these lengths, or of so many images: 6 per parameter and row it is
  // multiplied with, attention's products besides; no credit for recomputation (the definition of mfu).
  virtual double TrainFlops(absl::Span<const int32_t> lengths, int64_t images) const = 0;

 protected:
  // Called once by the constructor of the class that owns all modules.
  void CollectState();

 private:
  std::vector<const Param*> params_;
  std::vector<Buffer*> buffers_;
};

// What backward computes again (parallel.proto's Recompute).
enum class Recomputed : uint8_t { kNothing, kMlps, kBlocks };
struct Recomputation {
  Recomputation(Recomputed what = Recomputed::kNothing, int blocks = std::numeric_limits<int>::max())
      : what(what), blocks(blocks) {}
  Recomputed Of(int block) const { return block < blocks ? what : Recomputed::kNothing; }
  Recomputed what;
  int blocks;  // of the first this many blocks
};
Recomputation RecomputedBy(const config::ParallelConfig& config);

// The model that a resolved `config` names. One table in model.cc.
std::unique_ptr<Model> MakeModel(const config::ModelConfig& config, Recomputation recomputed = {});

}  // namespace shoal
