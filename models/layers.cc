#include "models/layers.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/transformer_spec.h"

namespace shoal {

using config::TransformerConfig;
using ops::Accumulate;
using ops::Transpose;

namespace {

Linear::Options LinearOptions(const std::string& name, int64_t in, int64_t out, const TransformerConfig& config,
                              float std_factor = 1) {
  return {.name = name,
          .in = in,
          .out = out,
          .bias = config.biases() ? Linear::Options::Bias::kYes : Linear::Options::Bias::kNo,
          .init_std = static_cast<float>(config.init_std()) * std_factor};
}

// Projections into the residual stream start smaller, so that its variance does not grow with depth (GPT-2).
float ResidualFactor(const TransformerConfig& config) {
  return 1.0f / std::sqrt(2.0f * static_cast<float>(config.layers()));
}

std::shared_ptr<const SeqLayout> LayoutOf(const StepContext::FrameRecord& frame) {
  return std::static_pointer_cast<const SeqLayout>(frame.object);
}

}  // namespace

Param VectorParam(std::string name, int64_t size, InitKind init) {
  return {.name = std::move(name), .shape = {size}, .init = init, .param_class = ParamClass::kVector};
}

Linear::Linear(const Options& options)
    : weight_{.name = options.name + ".weight", .shape = {options.out, options.in}, .init_std = options.init_std} {
  if (options.bias == Options::Bias::kYes) bias_ = VectorParam(options.name + ".bias", options.out, InitKind::kZeros);
}

void Linear::Forward(StepContext& ctx, const Tensor& x, const Tensor& y) {
  ops::LinearFwd(ctx.ops(), x, ctx.Weight(weight_), bias_ ? ctx.Weight(*bias_) : Tensor(), y);
}

void Linear::Backward(StepContext& ctx, const Tensor& x, const Tensor& dy, const Tensor& dx, Accumulate accumulate) {
  const auto weight_grad = [](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor> in) {
    ops::Matmul(ops, in[0], in[1], sinks[0].grad, {.transpose_a = Transpose::kYes, .accumulate = sinks[0].accumulate});
    if (sinks.size() > 1) ops::ColumnSum(ops, in[0], sinks[1].grad, sinks[1].accumulate);
  };
  if (bias_)
    ctx.WeightGrads({&weight_, &*bias_}, {dy, x}, weight_grad);
  else
    ctx.WeightGrads({&weight_}, {dy, x}, weight_grad);
  if (dx.defined()) ops::Matmul(ctx.ops(), dy, ctx.Weight(weight_), dx, {.accumulate = accumulate});
}

void Linear::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  visit(weight_);
  if (bias_) visit(*bias_);
}

Norm::Norm(std::string name, const TransformerConfig& config)
    : weight_(VectorParam(name + ".weight", config.width(), InitKind::kOnes)),
      epsilon_(static_cast<float>(config.norm_epsilon())) {
  if (config.norm() == TransformerConfig::LAYER_NORM)
    bias_ = VectorParam(name + ".bias", config.width(), InitKind::kZeros);
}

void Norm::Forward(StepContext& ctx, const Tensor& x, const Tensor& y, const Tensor& stats) {
  if (bias_)
    ops::LayerNormFwd(ctx.ops(), x, ctx.Weight(weight_), ctx.Weight(*bias_), epsilon_, y, stats);
  else
    ops::RmsNormFwd(ctx.ops(), x, ctx.Weight(weight_), epsilon_, y, stats);
}

void Norm::Backward(StepContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& stats, const Tensor& dx) {
  // The norms' gradients add to what is there, so a first contribution starts from zeros.
  const auto cleared = [](OpContext& ops, const GradSink& sink) {
    if (sink.accumulate == Accumulate::kOverwrite) ops::Fill(ops, sink.grad, 0);
    return sink.grad;
  };
  if (bias_) {
    ctx.WeightGrads({&weight_, &*bias_}, {dy, x, stats},
                    [cleared](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor> in) {
                      ops::LayerNormBwd(ops, in[0], in[1], Tensor(), in[2], Tensor(), Accumulate::kOverwrite,
                                        cleared(ops, sinks[0]), cleared(ops, sinks[1]));
                    });
    ops::LayerNormBwd(ctx.ops(), dy, x, ctx.Weight(weight_), stats, dx, Accumulate::kOverwrite, Tensor(), Tensor());
    return;
  }
  ctx.WeightGrads({&weight_}, {dy, x, stats},
                  [cleared](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor> in) {
                    ops::RmsNormBwd(ops, in[0], in[1], Tensor(), in[2], Tensor(), Accumulate::kOverwrite,
                                    cleared(ops, sinks[0]));
                  });
  ops::RmsNormBwd(ctx.ops(), dy, x, ctx.Weight(weight_), stats, dx, Accumulate::kOverwrite, Tensor());
}

void Norm::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  visit(weight_);
  if (bias_) visit(*bias_);
}

Embedding::Embedding(const TransformerConfig& config)
    : tokens_{.name = "tokens.weight",
              .shape = {config.vocabulary(), config.width()},
              .init_std = static_cast<float>(config.init_std()),
              .param_class = ParamClass::kEmbedding} {
  if (config.positions() == TransformerConfig::LEARNED) {
    positions_ = tokens_;
    positions_->name = "positions.weight";
    positions_->shape = {config.max_positions(), config.width()};
  }
}

Batch Embedding::Forward(StepContext& ctx, Batch x) {
  auto& frame = ctx.PushFrame();
  frame.saved = {x.x};
  frame.object = x.layout;
  const Tensor y = ctx.Frame({x.x.size(), tokens_.shape[1]}, ctx.compute());
  ops::EmbeddingFwd(ctx.ops(), x.x, ctx.Weight(tokens_), y, Accumulate::kOverwrite);
  if (positions_) ops::EmbeddingFwd(ctx.ops(), x.layout->positions, ctx.Weight(*positions_), y, Accumulate::kAdd);
  return {y, x.layout};
}

Batch Embedding::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const auto scatter = [](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor> in) {
    if (sinks[0].accumulate == Accumulate::kOverwrite) ops::Fill(ops, sinks[0].grad, 0);
    ops::EmbeddingBwd(ops, in[0], in[1], sinks[0].grad);
  };
  if (positions_) ctx.WeightGrad(*positions_, {LayoutOf(frame)->positions, dy.x}, scatter);
  ctx.WeightGrad(tokens_, {frame.saved[0], dy.x}, scatter);
  ctx.ReleaseFrame(frame);
  return {Tensor(), dy.layout};
}

void Embedding::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  visit(tokens_);
  if (positions_) visit(*positions_);
}

AttentionBlock::AttentionBlock(const std::string& name, const TransformerConfig& c, double multiplier)
    : name_(name),
      rope_(c.positions() == TransformerConfig::ROPE),
      qk_norm_(c.qk_norm()),
      width_(c.width()),
      heads_(c.heads()),
      key_heads_(c.kv_heads()),
      size_(HeadSize(c)),
      theta_(static_cast<float>(c.rope_theta())),
      epsilon_(static_cast<float>(c.norm_epsilon())),
      scale_(static_cast<float>(multiplier) / std::sqrt(static_cast<float>(size_))),
      norm_(name + ".norm", c),
      q_(LinearOptions(name + ".q", c.width(), heads_ * size_, c)),
      k_(LinearOptions(name + ".k", c.width(), key_heads_ * size_, c)),
      v_(LinearOptions(name + ".v", c.width(), key_heads_ * size_, c)),
      out_(LinearOptions(name + ".out", heads_ * size_, c.width(), c, ResidualFactor(c))),
      q_norm_(VectorParam(name + ".q_norm.weight", size_, InitKind::kOnes)),
      k_norm_(VectorParam(name + ".k_norm.weight", size_, InitKind::kOnes)) {}

AttentionBlock::Heads AttentionBlock::Split(const Tensor& fused) const {
  const Tensor heads = fused.View({fused.dim(0), heads_ + 2 * key_heads_, size_});
  return {heads.Slice(1, 0, heads_), heads.Slice(1, heads_, heads_ + key_heads_),
          heads.Slice(1, heads_ + key_heads_, heads_ + 2 * key_heads_), heads.Slice(1, 0, heads_ + key_heads_)};
}

Batch AttentionBlock::Forward(StepContext& ctx, Batch x) {
  auto& frame = ctx.PushFrame();
  const SequenceShard* shard = x.layout->shard.get();
  const int64_t tokens = x.x.dim(0), q_size = heads_ * size_, k_size = key_heads_ * size_;
  const Tensor stats = ctx.Frame(norm_.StatsShape(tokens), ctx.stats_dtype());
  const Shape fused_shape = {tokens, q_size + 2 * k_size};
  // Where heads are exchanged, what was received is kept in place of what was sent.
  const bool sends = shard != nullptr && shard->spread.ulysses > 1;
  Tensor fused = sends && !qk_norm_ ? ctx.Live(fused_shape, ctx.compute()) : ctx.Frame(fused_shape, ctx.compute());
  Tensor used = fused;  // what attention reads; with QK-norm the projections are kept beside it
  {
    const Tensor n = ctx.Live({tokens, width_}, ctx.compute());
    norm_.Forward(ctx, x.x, n, stats);
    q_.Forward(ctx, n, fused.Slice(1, 0, q_size));
    k_.Forward(ctx, n, fused.Slice(1, q_size, q_size + k_size));
    v_.Forward(ctx, n, fused.Slice(1, q_size + k_size, q_size + 2 * k_size));
  }
  Tensor q_stats, k_stats;
  if (qk_norm_) {
    used = sends ? ctx.Live(fused_shape, ctx.compute()) : ctx.Frame(fused_shape, ctx.compute());
    q_stats = ctx.Frame({tokens * heads_, 1}, ctx.stats_dtype());
    k_stats = ctx.Frame({tokens * key_heads_, 1}, ctx.stats_dtype());
    const Heads from = Split(fused), to = Split(used);
    ops::RmsNormFwd(ctx.ops(), from.q, ctx.Weight(q_norm_), epsilon_, to.q, q_stats);
    ops::RmsNormFwd(ctx.ops(), from.k, ctx.Weight(k_norm_), epsilon_, to.k, k_stats);
    ops::Copy(ctx.ops(), from.v, to.v);
  }
  if (rope_) ops::Rope(ctx.ops(), Split(used).qk, x.layout->positions, theta_, ops::Direction::kForward);
  Tensor attended, lse, block;
  if (shard == nullptr) {
    attended = ctx.Frame({tokens, q_size}, ctx.compute());
    lse = ctx.Frame({heads_, tokens}, ctx.stats_dtype());
    const Heads h = Split(used);
    ops::AttentionVarlenFwd(ctx.ops(), ctx.arena(), h.q, h.k, h.v, x.layout->cu_seqlens,
                            attended.View({tokens, heads_, size_}), lse, {.scale = scale_});
  } else {
    const SequenceAttentionKept kept = SequenceAttentionFwd(ctx, *shard, AllHeads(), name_, used);
    attended = kept.attended;
    lse = kept.lse;
    used = kept.gathered;
    block = kept.block;
    if (!qk_norm_) fused = Tensor();
  }
  const Tensor y = ctx.Frame({tokens, width_}, ctx.compute());
  out_.Forward(ctx, attended, y);
  frame.saved = {x.x, stats, fused, used, attended, lse, q_stats, k_stats, block};
  frame.object = x.layout;
  return {y, x.layout};
}

Batch AttentionBlock::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const auto layout = LayoutOf(frame);
  const Tensor &used = frame.saved[3], &attended = frame.saved[4], &lse = frame.saved[5];
  const int64_t tokens = attended.dim(0);
  const SequenceShard* shard = layout->shard.get();
  Tensor dfused;
  if (shard == nullptr) dfused = ctx.Live(used.shape(), ctx.compute());
  Tensor dattended = ctx.Live({tokens, heads_ * size_}, ctx.compute());
  out_.Backward(ctx, attended, dy.x, dattended, Accumulate::kOverwrite);
  if (shard == nullptr) {
    const Heads h = Split(used), d = Split(dfused);
    const Shape all_heads = {tokens, heads_, size_};
    ops::AttentionVarlenBwd(ctx.ops(), ctx.arena(), dattended.View(all_heads), h.q, h.k, h.v, attended.View(all_heads),
                            lse, layout->cu_seqlens, d.q, d.k, d.v, {.scale = scale_});
    dattended = Tensor();
  } else {
    dfused = SequenceAttentionBwd(ctx, *shard, AllHeads(), name_, {used, frame.saved[8], lse, attended},
                                  std::move(dattended));
  }
  const Tensor dx = BackwardFrom(ctx, frame, *layout, dfused);
  ctx.ReleaseFrame(frame);
  return {dx, dy.layout};
}

Tensor AttentionBlock::BackwardFrom(StepContext& ctx, const StepContext::FrameRecord& frame, const SeqLayout& layout,
                                    const Tensor& dfused) {
  const Tensor &x = frame.saved[0], &stats = frame.saved[1], &fused = frame.saved[2];
  const int64_t tokens = x.dim(0), q_size = heads_ * size_, k_size = key_heads_ * size_;
  const Heads d = Split(dfused);
  if (rope_) ops::Rope(ctx.ops(), d.qk, layout.positions, theta_, ops::Direction::kBackward);
  if (qk_norm_) {
    const Heads raw = Split(fused);
    const auto backward = [&](const Param& weight, const Tensor& dy_heads, const Tensor& x_heads,
                              const Tensor& head_stats) {
      ctx.WeightGrad(weight, {dy_heads, x_heads, head_stats},
                     [](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor> in) {
                       if (sinks[0].accumulate == Accumulate::kOverwrite) ops::Fill(ops, sinks[0].grad, 0);
                       ops::RmsNormBwd(ops, in[0], in[1], Tensor(), in[2], Tensor(), Accumulate::kOverwrite,
                                       sinks[0].grad);
                     });
      ops::RmsNormBwd(ctx.ops(), dy_heads, x_heads, ctx.Weight(weight), head_stats, dy_heads, Accumulate::kOverwrite,
                      Tensor());
    };
    backward(q_norm_, d.q, raw.q, frame.saved[6]);
    backward(k_norm_, d.k, raw.k, frame.saved[7]);
  }
  const Tensor dn = ctx.Live({tokens, width_}, ctx.compute());
  {
    const Tensor n = ctx.Live({tokens, width_}, ctx.compute());
    norm_.Forward(ctx, x, n, stats);
    q_.Backward(ctx, n, dfused.Slice(1, 0, q_size), dn, Accumulate::kOverwrite);
    k_.Backward(ctx, n, dfused.Slice(1, q_size, q_size + k_size), dn, Accumulate::kAdd);
    v_.Backward(ctx, n, dfused.Slice(1, q_size + k_size, q_size + 2 * k_size), dn, Accumulate::kAdd);
  }
  norm_.Backward(ctx, dn, x, stats, dn);
  return dn;
}

void AttentionBlock::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  norm_.VisitParams(visit);
  q_.VisitParams(visit);
  k_.VisitParams(visit);
  v_.VisitParams(visit);
  if (qk_norm_) {
    visit(q_norm_);
    visit(k_norm_);
  }
  out_.VisitParams(visit);
}

MlpBlock::MlpBlock(const std::string& name, const TransformerConfig& c, Inner inner)
    : width_(c.width()),
      ffn_(c.ffn()),
      gated_(c.activation() == TransformerConfig::SWIGLU),
      inner_(inner),
      norm_(name + ".norm", c),
      up_(LinearOptions(name + ".up", c.width(), c.ffn(), c)),
      down_(LinearOptions(name + ".down", c.ffn(), c.width(), c, ResidualFactor(c))) {
  if (gated_) gate_.emplace(LinearOptions(name + ".gate", c.width(), c.ffn(), c));
}

void MlpBlock::Activate(StepContext& ctx, const Tensor& hidden, const Tensor& y) const {
  if (gated_)
    ops::SwiGluFwd(ctx.ops(), hidden, y);
  else
    ops::GeluFwd(ctx.ops(), hidden, y);
}

void MlpBlock::Expand(StepContext& ctx, const Tensor& x, const Tensor& stats, const Tensor& hidden) {
  const Tensor n = ctx.Live({x.dim(0), width_}, ctx.compute());
  norm_.Forward(ctx, x, n, stats);
  if (gated_) gate_->Forward(ctx, n, hidden.Slice(1, 0, ffn_));
  up_.Forward(ctx, n, gated_ ? hidden.Slice(1, ffn_, 2 * ffn_) : hidden);
}

Batch MlpBlock::Forward(StepContext& ctx, Batch x) {
  auto& frame = ctx.PushFrame();
  const int64_t tokens = x.x.dim(0);
  const Tensor stats = ctx.Frame(norm_.StatsShape(tokens), ctx.stats_dtype());
  const bool keep = inner_ == Inner::kKeep;
  const Shape inner = {tokens, gated_ ? 2 * ffn_ : ffn_};
  const Tensor hidden = keep ? ctx.Frame(inner, ctx.compute()) : ctx.Live(inner, ctx.compute());
  Expand(ctx, x.x, stats, hidden);
  const Tensor y = ctx.Frame({tokens, width_}, ctx.compute());
  {
    const Tensor active = ctx.Live({tokens, ffn_}, ctx.compute());
    Activate(ctx, hidden, active);
    down_.Forward(ctx, active, y);
  }
  frame.saved = {x.x, stats};
  if (keep) frame.saved.push_back(hidden);
  return {y, x.layout};
}

Batch MlpBlock::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const Tensor &x = frame.saved[0], &stats = frame.saved[1];
  const int64_t tokens = x.dim(0);
  Tensor hidden;
  if (inner_ == Inner::kKeep) {
    hidden = frame.saved[2];
  } else {
    hidden = ctx.Live({tokens, gated_ ? 2 * ffn_ : ffn_}, ctx.compute());
    Expand(ctx, x, stats, hidden);
  }
  const Tensor& dhidden = hidden;  // in place: it is ours
  {
    const Tensor active = ctx.Live({tokens, ffn_}, ctx.compute());
    Activate(ctx, hidden, active);
    const Tensor& dactive = active;
    down_.Backward(ctx, active, dy.x, dactive, Accumulate::kOverwrite);
    if (gated_)
      ops::SwiGluBwd(ctx.ops(), dactive, hidden, dhidden);
    else
      ops::GeluBwd(ctx.ops(), dactive, hidden, dhidden);
  }
  const Tensor dn = ctx.Live({tokens, width_}, ctx.compute());
  {
    const Tensor n = ctx.Live({tokens, width_}, ctx.compute());
    norm_.Forward(ctx, x, n, stats);
    if (gated_) gate_->Backward(ctx, n, dhidden.Slice(1, 0, ffn_), dn, Accumulate::kOverwrite);
    up_.Backward(ctx, n, gated_ ? dhidden.Slice(1, ffn_, 2 * ffn_) : dhidden, dn,
                 gated_ ? Accumulate::kAdd : Accumulate::kOverwrite);
  }
  norm_.Backward(ctx, dn, x, stats, dn);
  ctx.ReleaseFrame(frame);
  return {dn, dy.layout};
}

void MlpBlock::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  norm_.VisitParams(visit);
  if (gated_) gate_->VisitParams(visit);
  up_.VisitParams(visit);
  down_.VisitParams(visit);
}

Batch DropoutLayer::Forward(StepContext& ctx, Batch x) {
  ctx.PushFrame().object = x.layout;
  if (ctx.mode() == Mode::kEval) return x;
  const Tensor y = ctx.Frame(x.x.shape(), x.x.dtype());
  ops::Dropout(ctx.ops(), x.x, rate_, ctx.Random(RngPurpose::kDropout, name_), x.layout->token_counters, y);
  return {y, x.layout};
}

Batch DropoutLayer::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const Tensor dx = ctx.Live(dy.x.shape(), dy.x.dtype());
  ops::Dropout(ctx.ops(), dy.x, rate_, ctx.Random(RngPurpose::kDropout, name_), LayoutOf(frame)->token_counters, dx);
  ctx.ReleaseFrame(frame);
  return {dx, dy.layout};
}

Batch NormLayer::Forward(StepContext& ctx, Batch x) {
  auto& frame = ctx.PushFrame();
  const Tensor stats = ctx.Frame(norm_.StatsShape(x.x.dim(0)), ctx.stats_dtype());
  frame.saved = {x.x, stats};
  const Tensor y = ctx.Frame(x.x.shape(), ctx.compute());
  norm_.Forward(ctx, x.x, y, stats);
  return {y, x.layout};
}

Batch NormLayer::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const Tensor dx = ctx.Live(dy.x.shape(), ctx.compute());
  norm_.Backward(ctx, dy.x, frame.saved[0], frame.saved[1], dx);
  ctx.ReleaseFrame(frame);
  return {dx, dy.layout};
}

LmHead::LmHead(const TransformerConfig& config, Param* tied, double multiplier)
    : own_{.name = "head.weight",
           .shape = {config.vocabulary(), config.width()},
           .init_std = static_cast<float>(config.init_std()),
           .param_class = ParamClass::kReadout},
      weight_(tied != nullptr ? tied : &own_),
      logit_scale_(static_cast<float>(multiplier)) {}

double LabelCount(const SeqLayout& layout) {
  if (layout.labels.meta()) return static_cast<double>(layout.labels.size());
  const auto labels = layout.labels.span<int32_t>();
  return static_cast<double>(std::count_if(labels.begin(), labels.end(), [](int32_t label) { return label >= 0; }));
}

Batch LmHead::Forward(StepContext& ctx, Batch x) {
  if (ctx.mode() == Mode::kTrain) {
    auto& frame = ctx.PushFrame();
    frame.saved = {x.x};
    frame.object = x.layout;
  } else if (x.layout->labels.defined()) {
    ctx.AddLoss("loss",
                ops::LinearCrossEntropy(ctx.ops(), ctx.arena(), x.x, ctx.Weight(*weight_), x.layout->labels, Tensor(),
                                        Tensor(), {.logit_scale = logit_scale_}),
                LabelCount(*x.layout));
  }
  return x;
}

Batch LmHead::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const auto layout = LayoutOf(frame);
  const Tensor dhidden = ctx.Live(frame.saved[0].shape(), ctx.compute());
  ctx.WeightGradNow(*weight_, [&](OpContext& ops, absl::Span<const GradSink> sinks, absl::Span<const Tensor>) {
    const double loss = ops::LinearCrossEntropy(ops, ctx.arena(), frame.saved[0], ctx.Weight(*weight_), layout->labels,
                                                dhidden, sinks[0].grad,
                                                {.grad_scale = static_cast<float>(ctx.grad_scale()),
                                                 .logit_scale = logit_scale_,
                                                 .accumulate_dweight = sinks[0].accumulate});
    ctx.AddLoss("loss", loss, LabelCount(*layout));
  });
  ctx.ReleaseFrame(frame);
  return {dhidden, dy.layout};
}

Tensor LmHead::Logits(StepContext& ctx, const Tensor& hidden) {
  const Tensor logits = ctx.Live({hidden.dim(0), weight_->shape[0]}, ctx.stats_dtype());
  ops::Matmul(ctx.ops(), hidden, ctx.Weight(*weight_), logits, {.transpose_b = Transpose::kYes});
  if (logit_scale_ != 1) ops::Scale(ctx.ops(), logits, logit_scale_);
  return logits;
}

}  // namespace shoal
