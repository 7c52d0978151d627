// LocalParams: whole weights and gradients of one rank, without sharding or communication. For evaluation, sampling,
// gradient checks and dry runs.
#pragma once

#include <memory>
#include <vector>

#include "runtime/module/param.h"

namespace shoal {

class LocalParams : public ParamSource {
 public:
  // `params` by id. Weights in `compute` dtype; gradients f32 (f64 for f64), made at first use.
  LocalParams(std::vector<const Param*> params, DType compute, DeviceKind device = DeviceKind::kCpu);

  Tensor Weight(const Param& param) override { return weights_[param.id]; }
  GradSink Grad(const Param& param) override;
  void Ready(const Param& param) override { ready_.push_back(param.id); }

  // Draws the initial weights: each element from (seed, name, index in the whole tensor).
  void Initialize(ThreadPool& pool, uint64_t seed);
  // Forgets gradients: the next contribution overwrites.
  void BeginStep();
  const std::vector<int>& ready() const { return ready_; }  // ids in the order in which they became ready
  const std::vector<const Param*>& params() const { return params_; }

 private:
  std::vector<const Param*> params_;
  DType compute_;
  DeviceKind device_;
  std::vector<Tensor> weights_, grads_;
  std::vector<bool> touched_;
  std::vector<int> ready_;
};

// Elements [begin, begin + out.size()) of the flattened initial value of `param`; out is f32 or f64.
void InitialValues(ThreadPool& pool, const Param& param, uint64_t seed, int64_t begin, const Tensor& out);

}  // namespace shoal
