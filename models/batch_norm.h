// Batch norm on tensors, for modules to build on (arXiv 1502.03167).
#pragma once

#include <string>

#include "runtime/module/module.h"
#include "runtime/ops/image_ops.h"

namespace shoal {

class BatchNorm {
 public:
  // Whose batch the statistics are of. A rank's own, or that of all ranks together (ctx.SumOverRanks).
  enum class Span : uint8_t { kRank, kAllRanks };
  struct Options {
    std::string name;
    int64_t channels = 0;
    InitKind scale_init = InitKind::kOnes;  // kZeros: the last norm of a residual branch may start as nothing
    double momentum = 0.1;  // of the running statistics: r = (1 - momentum) r + momentum batch (unbiased variance)
    double epsilon = 1e-5;
    Span span = Span::kRank;
  };
  explicit BatchNorm(const Options& options);

  // What a forward leaves for its backward, on the frame stack.
  struct Saved {
    Tensor mean, rstd;  // [C] of stats dtype
    double count = 0;   // pixels that went into them, over all ranks of the span
  };
  // Statistics of x [..., C]: of this batch in Mode::kTrain, the running ones in kEval. The running ones follow once,
  // not in replays.
  Saved Statistics(StepContext& ctx, const Tensor& x);
  // y = relu(norm(x) + residual); y may alias x or residual.
  void Apply(StepContext& ctx, const Saved& saved, const Tensor& x, const Tensor& residual, ops::Relu relu,
             const Tensor& y);
  // dx may alias dy or x; dresidual: undefined = not wanted.
  void Backward(StepContext& ctx, const Saved& saved, const Tensor& dy, const Tensor& x, const Tensor& residual,
                ops::Relu relu, const Tensor& dx, const Tensor& dresidual);
  void VisitParams(absl::FunctionRef<void(Param&)> visit);
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit);

 private:
  ops::BatchNormInputs Inputs(StepContext& ctx, const Saved& saved, const Tensor& x, const Tensor& residual,
                              ops::Relu relu) const;
  Options options_;
  Param weight_, bias_;
  Buffer running_mean_, running_var_;
};

}  // namespace shoal
