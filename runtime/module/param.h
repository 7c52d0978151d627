// Param: what a module knows of one of its parameters. Weights and gradients live elsewhere (ParamSource), so that
// sharding can own them.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/ops/ops.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// How the initial value is drawn; each element from Rng{seed, kInit, name} by its index in the whole tensor.
enum class InitKind : uint8_t { kZeros, kOnes, kNormal };
// What optimizers' groups and width rules ask about a parameter.
enum class ParamClass : uint8_t { kMatrix, kEmbedding, kReadout, kVector };

struct Param {
  std::string name;  // global, dotted: "blocks.3.attention.qkv.weight"; unique in the model
  Shape shape;
  InitKind init = InitKind::kNormal;
  float init_std = 0.02f;
  ParamClass param_class = ParamClass::kMatrix;
  int id = -1;   // position in the model's VisitParams order; set by Model assembly (AssignIds)
  int uses = 1;  // how many backward calls of one micro-batch touch it (tied or repeated weights); counted by AssignIds
  int64_t size() const { return NumElements(shape); }
};
// What Muon's own rule can update and spectra are taken of.
inline bool IsHiddenMatrix(const Param& param) {
  return param.param_class == ParamClass::kMatrix && param.shape.size() >= 2;
}

// State of a module that is not trained: batch norm's running statistics. f32, owned by the module. Written only by
// Forward in Mode::kTrain when ctx.replaying() is false; checkpoints hold it and averages of weights cover it.
struct Buffer {
  std::string name;  // as of a Param, and unique among both
  Tensor value;
};

// Where a backward pass puts a parameter's gradient: an f32 (f64 in gradient checks) tensor of the parameter's shape.
struct GradSink {
  Tensor grad;
  ops::Accumulate accumulate;  // kOverwrite on the first contribution of a step, so that nobody clears gradients
};

// Gives weights to modules and takes gradients from them. Implemented by the plain local store and by data-parallel
// sharding.
class ParamSource {
 public:
  virtual ~ParamSource() = default;
  // The weight in compute dtype; valid until the calling module's Forward or Backward returns.
  virtual Tensor Weight(const Param& param) = 0;
  // Where to put a contribution to the gradient. Each call counts as one contribution.
  virtual GradSink Grad(const Param& param) = 0;
  // The parameter has had its last contribution of this micro-batch; called in program order, identically on all ranks.
  virtual void Ready(const Param& param) = 0;
};

}  // namespace shoal
