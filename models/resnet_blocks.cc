// Stem, residual blocks and head of ResNets.
#include <algorithm>
#include <cmath>
#include <utility>

#include "models/resnet.h"

namespace shoal {
namespace {

using config::ResNetConfig;
using ops::Accumulate;
using ops::Relu;

// Convolutions with their norms and ReLUs, then perhaps a max-pool. The images take no gradient.
class Stem : public Module {
 public:
  explicit Stem(const ResNetConfig& config) : pool_(HasMaxPool(config)) {
    int64_t in = config.channels();
    for (const StemConv& s : StemConvs(config)) {
      convs_.emplace_back(
          ConvNorm::Options{.name = s.name, .in = in, .out = s.out, .kernel = s.kernel, .stride = s.stride}, config);
      in = s.out;
    }
  }

  Batch Forward(StepContext& ctx, Batch x) override {
    auto record = std::make_shared<Record>();
    auto& frame = ctx.PushFrame();
    frame.object = record;
    record->layout = x.layout;
    record->x = x.x;
    if (x.x.dtype() != ctx.compute()) {
      record->x = ctx.Frame(x.x.shape(), ctx.compute());
      ops::Copy(ctx.ops(), x.x, record->x);
    }
    Tensor y = record->x;
    for (size_t i = 0; i < convs_.size(); ++i) {
      const Tensor c = ctx.Frame(convs_[i].OutputShape(y), ctx.compute());
      convs_[i].Convolve(ctx, y, c);
      record->convolved.push_back(c);
      record->norms.push_back(convs_[i].norm().Statistics(ctx, c));
      const bool out = i + 1 == convs_.size() && !pool_;
      y = out ? ctx.Frame(c.shape(), ctx.compute()) : ctx.Live(c.shape(), ctx.compute());
      convs_[i].norm().Apply(ctx, record->norms[i], c, Tensor(), Relu::kYes, y);
    }
    if (pool_) {
      const auto extent = [](int64_t in) { return ops::ConvExtent(in, 3, 2, 1); };
      const Shape pooled = {y.dim(0), extent(y.dim(1)), extent(y.dim(2)), y.dim(3)};
      record->argmax = ctx.Frame(pooled, DType::kU8);
      const Tensor out = ctx.Frame(pooled, ctx.compute());
      ops::MaxPoolFwd(ctx.ops(), y, out, record->argmax, {});
      y = out;
    }
    return {y, x.layout};
  }

  Batch Backward(StepContext& ctx, Batch dy) override {
    const auto frame = ctx.PopFrame();
    const auto& record = *static_cast<const Record*>(frame.object.get());
    Tensor d = dy.x;
    if (pool_) {
      d = ctx.Live(record.convolved.back().shape(), ctx.compute());
      ops::MaxPoolBwd(ctx.ops(), dy.x, record.argmax, d, {});
    }
    for (size_t i = convs_.size(); i-- > 0;) {
      const bool own = pool_ || i + 1 < convs_.size();  // dy is the caller's
      const Tensor dc = own ? d : ctx.Live(d.shape(), ctx.compute());
      convs_[i].norm().Backward(ctx, record.norms[i], d, record.convolved[i], Tensor(), Relu::kYes, dc, Tensor());
      if (i == 0) {
        convs_[0].ConvolveBackward(ctx, record.x, dc, Tensor());
        break;
      }
      const Tensor before = ctx.Live(record.convolved[i - 1].shape(), ctx.compute());
      convs_[i - 1].norm().Apply(ctx, record.norms[i - 1], record.convolved[i - 1], Tensor(), Relu::kYes, before);
      d = ctx.Live(before.shape(), ctx.compute());
      convs_[i].ConvolveBackward(ctx, before, dc, d);
    }
    ctx.ReleaseFrame(frame);
    return {Tensor(), dy.layout};
  }

  void VisitParams(absl::FunctionRef<void(Param&)> visit) override {
    for (ConvNorm& conv : convs_) conv.VisitParams(visit);
  }
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override {
    for (ConvNorm& conv : convs_) conv.VisitBuffers(visit);
  }

 private:
  struct Record {
    Tensor x, argmax;
    std::vector<Tensor> convolved;
    std::vector<BatchNorm::Saved> norms;
    std::shared_ptr<const SeqLayout> layout;
  };
  bool pool_;
  std::vector<ConvNorm> convs_;
};

// s = sigmoid(W2 relu(W1 mean(z) + b1) + b2) per image and channel (arXiv 1709.01507).
class SqueezeExcite {
 public:
  SqueezeExcite(const std::string& name, int64_t channels, int64_t squeezed)
      : channels_(channels),
        squeezed_(squeezed),
        reduce_(Options(name + ".reduce", channels, squeezed)),
        expand_(Options(name + ".expand", squeezed, channels)) {}

  struct Values {
    Tensor mean, hidden, scale;  // [N, C], [N, S], [N, C]
  };
  Values Forward(StepContext& ctx, const Tensor& z) {
    const int64_t n = z.dim(0);
    Values v{ctx.Live({n, channels_}, ctx.compute()), ctx.Live({n, squeezed_}, ctx.compute()),
             ctx.Live({n, channels_}, ctx.compute())};
    ops::GlobalAvgPoolFwd(ctx.ops(), z, v.mean);
    reduce_.Forward(ctx, v.mean, v.hidden);
    ops::ReluFwd(ctx.ops(), v.hidden, v.hidden);
    expand_.Forward(ctx, v.hidden, v.scale);
    ops::SigmoidFwd(ctx.ops(), v.scale, v.scale);
    return v;
  }
  // dz of dy = gradient of z * scale; may not alias.
  void Backward(StepContext& ctx, const Values& v, const Tensor& dy, const Tensor& z, const Tensor& dz) {
    const Tensor ds = ctx.Live(v.scale.shape(), ctx.compute()), dh = ctx.Live(v.hidden.shape(), ctx.compute()),
                 dm = ctx.Live(v.mean.shape(), ctx.compute()), spread = ctx.Live(z.shape(), ctx.compute());
    ops::ChannelScaleBwd(ctx.ops(), dy, z, v.scale, dz, ds);
    ops::SigmoidBwd(ctx.ops(), ds, v.scale, ds);
    expand_.Backward(ctx, v.hidden, ds, dh, Accumulate::kOverwrite);
    ops::ReluBwd(ctx.ops(), dh, v.hidden, dh);
    reduce_.Backward(ctx, v.mean, dh, dm, Accumulate::kOverwrite);
    ops::GlobalAvgPoolBwd(ctx.ops(), dm, spread);
    ops::Add(ctx.ops(), dz, spread, dz);
  }
  void VisitParams(absl::FunctionRef<void(Param&)> visit) {
    reduce_.VisitParams(visit);
    expand_.VisitParams(visit);
  }

 private:
  static Linear::Options Options(const std::string& name, int64_t in, int64_t out) {
    return {.name = name,
            .in = in,
            .out = out,
            .bias = Linear::Options::Bias::kYes,
            .init_std = std::sqrt(2.0f / static_cast<float>(out))};
  }
  int64_t channels_, squeezed_;
  Linear reduce_, expand_;
};

// y = relu(branch(x) + shortcut(x)). Kept: the convolutions' outputs and the norms' statistics.
class ResNetBlock : public Module {
 public:
  ResNetBlock(const ResNetConfig& c, const BlockShape& b) : name_(b.name), drop_rate_(b.drop_rate) {
    const InitKind last = c.zero_init_residual() ? InitKind::kZeros : InitKind::kOnes;
    const auto add = [&](const char* name, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t groups,
                         InitKind scale_init) {
      convs_.emplace_back(ConvNorm::Options{.name = b.name + name,
                                            .in = in,
                                            .out = out,
                                            .kernel = kernel,
                                            .stride = stride,
                                            .groups = groups,
                                            .scale_init = scale_init},
                          c);
    };
    if (c.block() == ResNetConfig::BASIC) {
      add(".conv1", b.in, b.middle, 3, b.stride, 1, InitKind::kOnes);
      add(".conv2", b.middle, b.out, 3, 1, 1, last);
    } else {
      add(".conv1", b.in, b.middle, 1, 1, 1, InitKind::kOnes);
      add(".conv2", b.middle, b.middle, 3, b.stride, c.groups(), InitKind::kOnes);
      add(".conv3", b.middle, b.out, 1, 1, 1, last);
    }
    if (c.squeeze_excite() > 0) {
      squeeze_.emplace(b.name + ".squeeze_excite", b.out,
                       std::max<int64_t>(1, std::llround(c.squeeze_excite() * static_cast<double>(b.out))));
    }
    if (b.stride == 1 && b.in == b.out) return;
    pooled_ = c.shortcut() == ResNetConfig::AVERAGE_POOL && b.stride == 2;
    shortcut_.emplace(
        ConvNorm::Options{.name = b.name + ".shortcut", .in = b.in, .out = b.out, .stride = pooled_ ? 1 : b.stride}, c);
  }

  Batch Forward(StepContext& ctx, Batch x) override {
    auto record = std::make_shared<Record>();
    ctx.PushFrame().object = record;
    record->x = x.x;
    record->layout = x.layout;
    Tensor inner = x.x;
    for (size_t i = 0; i < convs_.size(); ++i) {
      const Tensor c = ctx.Frame(convs_[i].OutputShape(inner), ctx.compute());
      convs_[i].Convolve(ctx, inner, c);
      record->convolved.push_back(c);
      record->norms.push_back(convs_[i].norm().Statistics(ctx, c));
      if (i + 1 == convs_.size()) break;
      inner = ctx.Live(c.shape(), ctx.compute());
      convs_[i].norm().Apply(ctx, record->norms[i], c, Tensor(), Relu::kYes, inner);
    }
    if (shortcut_) {
      const Tensor in = ShortcutInput(ctx, x.x);
      record->shortcut = ctx.Frame(shortcut_->OutputShape(in), ctx.compute());
      shortcut_->Convolve(ctx, in, record->shortcut);
      record->shortcut_norm = shortcut_->norm().Statistics(ctx, record->shortcut);
    }
    const Tensor y = ctx.Frame(record->convolved.back().shape(), ctx.compute());
    const Tensor residual = Residual(ctx, *record);
    if (Plain(ctx)) {
      convs_.back().norm().Apply(ctx, record->norms.back(), record->convolved.back(), residual, Relu::kYes, y);
    } else {
      const Gated gated = Gate(ctx, *record);
      ops::Add(ctx.ops(), gated.branch, residual, y);
      ops::ReluFwd(ctx.ops(), y, y);
    }
    return {y, x.layout};
  }

  Batch Backward(StepContext& ctx, Batch dy) override {
    const auto frame = ctx.PopFrame();
    const Record& r = *static_cast<const Record*>(frame.object.get());
    const Tensor& last = r.convolved.back();
    // Gradients live no longer than they are needed: these are the most that backward holds beside frames.
    Tensor d = ctx.Live(last.shape(), ctx.compute());
    const Tensor residual = Residual(ctx, r);
    const Tensor dresidual = shortcut_ ? residual : ctx.Live(last.shape(), ctx.compute());
    if (Plain(ctx))
      convs_.back().norm().Backward(ctx, r.norms.back(), dy.x, last, residual, Relu::kYes, d, dresidual);
    else
      GateBackward(ctx, r, dy.x, residual, d, dresidual);
    dy.x = Tensor();
    for (size_t i = convs_.size() - 1; i > 0; --i) {
      const Tensor before = ctx.Live(r.convolved[i - 1].shape(), ctx.compute());
      convs_[i - 1].norm().Apply(ctx, r.norms[i - 1], r.convolved[i - 1], Tensor(), Relu::kYes, before);
      const Tensor dbefore = ctx.Live(before.shape(), ctx.compute());
      convs_[i].ConvolveBackward(ctx, before, d, dbefore);
      convs_[i - 1].norm().Backward(ctx, r.norms[i - 1], dbefore, r.convolved[i - 1], Tensor(), Relu::kYes, dbefore,
                                    Tensor());
      d = dbefore;
    }
    const Tensor dx = ctx.Live(r.x.shape(), ctx.compute());
    convs_[0].ConvolveBackward(ctx, r.x, d, dx);
    d = Tensor();
    if (shortcut_)
      ShortcutBackward(ctx, r, dresidual, dx);
    else
      ops::Add(ctx.ops(), dx, dresidual, dx);
    ctx.ReleaseFrame(frame);
    return {dx, dy.layout};
  }

  void VisitParams(absl::FunctionRef<void(Param&)> visit) override {
    for (ConvNorm& conv : convs_) conv.VisitParams(visit);
    if (squeeze_) squeeze_->VisitParams(visit);
    if (shortcut_) shortcut_->VisitParams(visit);
  }
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override {
    for (ConvNorm& conv : convs_) conv.VisitBuffers(visit);
    if (shortcut_) shortcut_->VisitBuffers(visit);
  }

 private:
  struct Record {
    Tensor x;
    std::vector<Tensor> convolved;
    std::vector<BatchNorm::Saved> norms;
    Tensor shortcut;  // its convolution's output
    BatchNorm::Saved shortcut_norm;
    std::shared_ptr<const SeqLayout> layout;
  };

  // Neither squeezed nor dropped: norm, sum and ReLU are one pass.
  bool Plain(StepContext& ctx) const { return !squeeze_ && !Drops(ctx); }
  bool Drops(StepContext& ctx) const { return drop_rate_ > 0 && ctx.mode() == Mode::kTrain; }

  Tensor ShortcutInput(StepContext& ctx, const Tensor& x) const {
    if (!pooled_) return x;
    const Tensor half = ctx.Live({x.dim(0), (x.dim(1) + 1) / 2, (x.dim(2) + 1) / 2, x.dim(3)}, ctx.compute());
    ops::AvgPoolFwd(ctx.ops(), x, half);
    return half;
  }
  // What is added to the branch: x, or the projected x, made from what is kept.
  Tensor Residual(StepContext& ctx, const Record& r) {
    if (!shortcut_) return r.x;
    const Tensor s = ctx.Live(r.shortcut.shape(), ctx.compute());
    shortcut_->norm().Apply(ctx, r.shortcut_norm, r.shortcut, Tensor(), Relu::kNo, s);
    return s;
  }
  void ShortcutBackward(StepContext& ctx, const Record& r, const Tensor& d, const Tensor& dx) {
    shortcut_->norm().Backward(ctx, r.shortcut_norm, d, r.shortcut, Tensor(), Relu::kNo, d, Tensor());
    const Tensor in = ShortcutInput(ctx, r.x);
    const Tensor din = ctx.Live(in.shape(), ctx.compute());
    shortcut_->ConvolveBackward(ctx, in, d, din);
    if (!pooled_) return ops::Add(ctx.ops(), dx, din, dx);
    const Tensor whole = ctx.Live(dx.shape(), ctx.compute());
    ops::AvgPoolBwd(ctx.ops(), din, whole);
    ops::Add(ctx.ops(), dx, whole, dx);
  }

  // The branch after its last norm, squeezed and dropped.
  struct Gated {
    Tensor normed, branch;
    SqueezeExcite::Values values;
  };
  Gated Gate(StepContext& ctx, const Record& r) {
    const Tensor& last = r.convolved.back();
    Gated g;
    g.normed = ctx.Live(last.shape(), ctx.compute());
    convs_.back().norm().Apply(ctx, r.norms.back(), last, Tensor(), Relu::kNo, g.normed);
    g.branch = g.normed;
    if (squeeze_) {
      g.values = squeeze_->Forward(ctx, g.normed);
      g.branch = ctx.Live(last.shape(), ctx.compute());
      ops::ChannelScaleFwd(ctx.ops(), g.normed, g.values.scale, g.branch);
    }
    if (Drops(ctx)) ops::DropPath(ctx.ops(), g.branch, Rate(), Key(ctx), r.layout->token_counters, g.branch);
    return g;
  }
  void GateBackward(StepContext& ctx, const Record& r, const Tensor& dy, const Tensor& residual, const Tensor& d,
                    const Tensor& dresidual) {
    const Tensor& last = r.convolved.back();
    const Gated g = Gate(ctx, r);
    {
      const Tensor y = ctx.Live(last.shape(), ctx.compute());
      ops::Add(ctx.ops(), g.branch, residual, y);
      ops::ReluFwd(ctx.ops(), y, y);
      ops::ReluBwd(ctx.ops(), dy, y, dresidual);
    }
    const Tensor dbranch = ctx.Live(last.shape(), ctx.compute());
    if (Drops(ctx))
      ops::DropPath(ctx.ops(), dresidual, Rate(), Key(ctx), r.layout->token_counters, dbranch);
    else
      ops::Copy(ctx.ops(), dresidual, dbranch);
    // Dropping in place has changed what the squeeze saw only where it saw itself: without one, normed is the branch.
    if (squeeze_)
      squeeze_->Backward(ctx, g.values, dbranch, g.normed, d);
    else
      ops::Copy(ctx.ops(), dbranch, d);
    convs_.back().norm().Backward(ctx, r.norms.back(), d, last, Tensor(), Relu::kNo, d, Tensor());
  }
  float Rate() const { return static_cast<float>(drop_rate_); }
  RngKey Key(StepContext& ctx) const { return ctx.Random(RngPurpose::kDropout, name_ + ".stochastic_depth"); }

  std::string name_;
  double drop_rate_;
  bool pooled_ = false;
  std::vector<ConvNorm> convs_;
  std::optional<SqueezeExcite> squeeze_;
  std::optional<ConvNorm> shortcut_;
};

class Classifier : public ResNetHead {
 public:
  Classifier(const ResNetConfig& c, int64_t features)
      : features_(features),
        rate_(static_cast<float>(c.dropout())),
        smoothing_(static_cast<float>(c.label_smoothing())),
        weight_{.name = "head.weight",
                .shape = {c.classes(), features},
                .init_std = 0.01f,
                .param_class = ParamClass::kReadout},
        bias_{
            .name = "head.bias", .shape = {c.classes()}, .init = InitKind::kZeros, .param_class = ParamClass::kVector} {
  }

  Batch Forward(StepContext& ctx, Batch x) override {
    if (ctx.mode() == Mode::kTrain) {
      auto& frame = ctx.PushFrame();
      const Tensor kept = ctx.Frame({x.x.dim(0), features_}, ctx.compute());
      ops::GlobalAvgPoolFwd(ctx.ops(), x.x, kept);
      if (rate_ > 0) ops::Dropout(ctx.ops(), kept, rate_, Key(ctx), x.layout->token_counters, kept);
      frame.saved = {kept, x.x};
      frame.object = x.layout;
      return x;
    }
    if (x.layout->labels.defined()) Loss(ctx, Mean(ctx, x.x), *x.layout, Tensor(), {}, {});
    return x;
  }

  Tensor Logits(StepContext& ctx, const Tensor& features) override {
    const Tensor logits = ctx.Live({features.dim(0), weight_.shape[0]}, ctx.compute());
    ops::LinearFwd(ctx.ops(), Mean(ctx, features), ctx.Weight(weight_), ctx.Weight(bias_), logits,
                   Accumulate::kOverwrite);
    return logits;
  }

  Batch Backward(StepContext& ctx, Batch dy) override {
    const auto frame = ctx.PopFrame();
    const Tensor &kept = frame.saved[0], &x = frame.saved[1];
    const auto layout = std::static_pointer_cast<const SeqLayout>(frame.object);
    const Tensor dmean = ctx.Live(kept.shape(), ctx.compute());
    // Both gradients come out of one pass.
    GradSink weight_sink, bias_sink;
    ctx.WeightGradNow(weight_, [&](OpContext&, absl::Span<const GradSink> sinks, absl::Span<const Tensor>) {
      weight_sink = sinks[0];
      ctx.WeightGradNow(bias_, [&](OpContext&, absl::Span<const GradSink> inner, absl::Span<const Tensor>) {
        bias_sink = inner[0];
        Loss(ctx, kept, *layout, dmean, weight_sink, bias_sink);
      });
    });
    if (rate_ > 0) ops::Dropout(ctx.ops(), dmean, rate_, Key(ctx), layout->token_counters, dmean);
    const Tensor dx = ctx.Live(x.shape(), ctx.compute());
    ops::GlobalAvgPoolBwd(ctx.ops(), dmean, dx);
    ctx.ReleaseFrame(frame);
    return {dx, dy.layout};
  }

  void VisitParams(absl::FunctionRef<void(Param&)> visit) override {
    visit(weight_);
    visit(bias_);
  }

 private:
  void Loss(StepContext& ctx, const Tensor& features, const SeqLayout& layout, const Tensor& dfeatures,
            const GradSink& weight_sink, const GradSink& bias_sink) {
    int64_t correct = 0;
    const ops::CrossEntropyOptions options{.grad_scale = static_cast<float>(ctx.grad_scale()),
                                           .label_smoothing = smoothing_,
                                           .correct = &correct,
                                           .accumulate_dweight = weight_sink.accumulate,
                                           .bias = ctx.Weight(bias_),
                                           .dbias = bias_sink.grad,
                                           .accumulate_dbias = bias_sink.accumulate};
    const double loss = ops::LinearCrossEntropy(ctx.ops(), ctx.arena(), features, ctx.Weight(weight_), layout.labels,
                                                dfeatures, weight_sink.grad, options);
    const double count = LabelCount(layout);
    ctx.AddLoss("loss", loss, count);
    ctx.AddLoss("correct", static_cast<double>(correct), count);
  }
  Tensor Mean(StepContext& ctx, const Tensor& x) const {
    const Tensor mean = ctx.Live({x.dim(0), features_}, ctx.compute());
    ops::GlobalAvgPoolFwd(ctx.ops(), x, mean);
    return mean;
  }
  RngKey Key(StepContext& ctx) const { return ctx.Random(RngPurpose::kDropout, "head.dropout"); }

  int64_t features_;
  float rate_, smoothing_;
  Param weight_, bias_;
};

}  // namespace

std::unique_ptr<Module> MakeResNetStem(const ResNetConfig& config) { return std::make_unique<Stem>(config); }
std::unique_ptr<Module> MakeResNetBlock(const ResNetConfig& config, const BlockShape& shape) {
  return std::make_unique<ResNetBlock>(config, shape);
}
std::unique_ptr<ResNetHead> MakeResNetHead(const ResNetConfig& config, int64_t features) {
  return std::make_unique<Classifier>(config, features);
}

}  // namespace shoal
