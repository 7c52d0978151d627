#include "models/resnet.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/resnet_spec.h"

namespace shoal {

using config::ResNetConfig;

ConvNorm::ConvNorm(const Options& o, const ResNetConfig& config)
    : options_{.stride = o.stride, .padding = o.kernel / 2, .groups = o.groups},
      weight_{.name = o.name + ".weight",
              .shape = {o.out, o.kernel, o.kernel, o.in / o.groups},
              // He et al. (arXiv 1502.01852), by what a filter puts out.
              .init_std = static_cast<float>(
                  std::sqrt(2.0 / (static_cast<double>(o.kernel * o.kernel * o.out) / static_cast<double>(o.groups))))},
      norm_({.name = o.name + ".norm",
             .channels = o.out,
             .scale_init = o.scale_init,
             .momentum = config.norm_momentum(),
             .epsilon = config.norm_epsilon(),
             .span = config.sync_norm() ? BatchNorm::Span::kAllRanks : BatchNorm::Span::kRank}) {}

Shape ConvNorm::OutputShape(const Tensor& x) const {
  const auto extent = [&](int64_t in) {
    return ops::ConvExtent(in, weight_.shape[1], options_.stride, options_.padding);
  };
  return {x.dim(0), extent(x.dim(1)), extent(x.dim(2)), weight_.shape[0]};
}

void ConvNorm::Convolve(StepContext& ctx, const Tensor& x, const Tensor& y) {
  ops::Conv2dFwd(ctx.ops(), ctx.arena(), x, ctx.Weight(weight_), y, options_);
}

void ConvNorm::ConvolveBackward(StepContext& ctx, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  // Works in the arena, so it cannot wait for later.
  ctx.WeightGradNow(weight_, [&](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor>) {
    ops::Conv2dBwdWeight(ops, ctx.arena(), dy, x, sinks[0].grad, sinks[0].accumulate, options_);
  });
  if (dx.defined()) ops::Conv2dBwdInput(ctx.ops(), ctx.arena(), dy, ctx.Weight(weight_), dx, options_);
}

void ConvNorm::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  visit(weight_);
  norm_.VisitParams(visit);
}

void ForEachBlock(const ResNetConfig& c, absl::FunctionRef<void(const BlockShape&)> fn) {
  int64_t in = StemConvs(c).back().out;
  for (int stage = 0; stage < c.depths_size(); ++stage) {
    const int64_t middle = int64_t{c.width()} << stage;
    const int64_t out = c.block() == ResNetConfig::BASIC ? middle : 4 * middle;
    for (int i = 0; i < c.depths(stage); ++i) {
      // ResNet-RS numbers its stages from 2 to 5 and drops rate * number / 5.
      const double rate = c.stochastic_depth() * (stage + 2) / (c.depths_size() + 1);
      fn({absl::StrCat("stages.", stage, ".", i), in, middle, out, stage > 0 && i == 0 ? 2 : 1, rate});
      in = out;
    }
  }
}

std::vector<StemConv> StemConvs(const ResNetConfig& c) {
  const int64_t w = c.width();
  switch (c.stem()) {
    case ResNetConfig::IMAGENET:
      return {{"stem.0", w, 7, 2}};
    case ResNetConfig::CIFAR:
      return {{"stem.0", w, 3, 1}};
    case ResNetConfig::DEEP:
      return {{"stem.0", w / 2, 3, 2}, {"stem.1", w / 2, 3, 1}, {"stem.2", w, 3, 1}};
    case ResNetConfig::RS:
      return {{"stem.0", w / 2, 3, 2}, {"stem.1", w / 2, 3, 1}, {"stem.2", w, 3, 1}, {"stem.3", w, 3, 2}};
  }
  return {};
}

bool HasMaxPool(const ResNetConfig& c) { return c.stem() == ResNetConfig::IMAGENET || c.stem() == ResNetConfig::DEEP; }

ResNet::ResNet(const ResNetConfig& config, Recomputation recomputation) : config_(config) {
  body_.Add("stem", MakeResNetStem(config));
  int64_t features = 0;
  int index = 0;
  ForEachBlock(config, [&](const BlockShape& shape) {
    auto block = MakeResNetBlock(config, shape);
    if (recomputation.Of(index++) == Recomputed::kBlocks) block = std::make_unique<Recompute>(std::move(block));
    body_.Add(shape.name, std::move(block));
    features = shape.out;
  });
  auto head = MakeResNetHead(config, features);
  head_ = head.get();
  body_.Add("head", std::move(head));
  CollectState();
}

Batch ResNet::Backward(StepContext& ctx, Batch dy) {
  Batch dx = body_.Backward(ctx, std::move(dy));
  ctx.RunDeferred();
  return dx;
}

Tensor ResNet::Logits(StepContext& ctx, const Tensor& images) {
  const Batch features = body_.Forward(ctx, {images, std::make_shared<SeqLayout>()});
  return head_->Logits(ctx, features.x);
}

double ResNet::TrainFlops(absl::Span<const int32_t>, int64_t images) const {
  // The stem's first convolution has no gradient of its input.
  const ConvLayer first = ConvLayers(config_).front();
  const auto side = static_cast<double>(ops::ConvExtent(first.size, first.kernel, first.stride, first.kernel / 2));
  const double unneeded = side * side * static_cast<double>(first.kernel * first.kernel * first.in * first.out);
  return (6 * ForwardMacs(config_) - 2 * unneeded) * static_cast<double>(images);
}

}  // namespace shoal
