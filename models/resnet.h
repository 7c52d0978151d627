// ResNets of all kinds that ResNetConfig describes, from one set of layers. Images [N, H, W, C] in, losses "loss" and
// "correct" out. Outputs of norms inside a block are not kept: backward makes them again from the convolutions'
// outputs.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/batch_norm.h"
#include "models/layers.h"
#include "models/model.h"
#include "runtime/module/combinators.h"

namespace shoal {

// A convolution without bias and its batch norm.
class ConvNorm {
 public:
  struct Options {
    std::string name;
    int64_t in = 0, out = 0, kernel = 1, stride = 1, groups = 1;
    InitKind scale_init = InitKind::kOnes;
  };
  ConvNorm(const Options& options, const config::ResNetConfig& config);

  Shape OutputShape(const Tensor& x) const;
  void Convolve(StepContext& ctx, const Tensor& x, const Tensor& y);
  // Contributes the weight's gradient; dx undefined: not wanted.
  void ConvolveBackward(StepContext& ctx, const Tensor& x, const Tensor& dy, const Tensor& dx);
  BatchNorm& norm() { return norm_; }
  void VisitParams(absl::FunctionRef<void(Param&)> visit);
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) { norm_.VisitBuffers(visit); }

 private:
  ops::Conv2dOptions options_;
  Param weight_;
  BatchNorm norm_;
};

// What a residual block looks like.
struct BlockShape {
  std::string name;  // "stages.2.0"
  int64_t in = 0, middle = 0, out = 0, stride = 1;
  double drop_rate = 0;  // of stochastic depth
};
// Calls fn for every block of a resolved config, in the order of forward.
void ForEachBlock(const config::ResNetConfig& config, absl::FunctionRef<void(const BlockShape&)> fn);
// The stem's convolutions (input channels follow from the one before); whether a 3x3 max-pool of stride 2 follows them.
struct StemConv {
  std::string name;
  int64_t out = 0, kernel = 3, stride = 1;
};
std::vector<StemConv> StemConvs(const config::ResNetConfig& config);
bool HasMaxPool(const config::ResNetConfig& config);

// Mean over pixels, dropout, classifier and its loss.
class ResNetHead : public Module {
 public:
  // [N, classes] of what the last block puts out, in Mode::kEval and the compute dtype; live.
  virtual Tensor Logits(StepContext& ctx, const Tensor& features) = 0;
};

class ResNet : public Model {
 public:
  // `config` is resolved (ResolveResNet). Recomputed::kBlocks: whole blocks are computed again in backward.
  ResNet(const config::ResNetConfig& config, Recomputation recomputation);
  Batch Forward(StepContext& ctx, Batch x) override { return body_.Forward(ctx, std::move(x)); }
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override { body_.VisitParams(visit); }
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override { body_.VisitBuffers(visit); }
  double TrainFlops(absl::Span<const int32_t> lengths, int64_t images) const override;

  // [N, classes] of images [N, H, W, C], in Mode::kEval and the compute dtype; live.
  Tensor Logits(StepContext& ctx, const Tensor& images);

 private:
  config::ResNetConfig config_;
  Seq body_;
  ResNetHead* head_;  // body_'s last
};

// The parts, for the table of modules.
std::unique_ptr<Module> MakeResNetStem(const config::ResNetConfig& config);
std::unique_ptr<Module> MakeResNetBlock(const config::ResNetConfig& config, const BlockShape& shape);
std::unique_ptr<ResNetHead> MakeResNetHead(const config::ResNetConfig& config, int64_t features);

}  // namespace shoal
