// The layers that transformers are built from. One set serves GPT-2 and LLaMA styles. Outputs of norms and activations
// are not kept: Backward makes them again from what is, for a few per cent of time and two fifths of the memory.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "models/models.pb.h"
#include "parallel/sequence_attention.h"
#include "runtime/module/module.h"

namespace shoal {

// How many rows have a label.
double LabelCount(const SeqLayout& layout);

// A parameter [size] of class kVector: a bias, a norm's weight.
Param VectorParam(std::string name, int64_t size, InitKind init);

// y = x W^T + b on tensors, for modules to build on. weight [out, in], bias [out] or none.
class Linear {
 public:
  struct Options {
    std::string name;
    int64_t in = 0, out = 0;
    enum class Bias : uint8_t { kNo, kYes } bias = Bias::kNo;
    float init_std = 0.02f;
  };
  explicit Linear(const Options& options);
  // x [T, in], y [T, out]; both may be row-strided.
  void Forward(StepContext& ctx, const Tensor& x, const Tensor& y);
  // Contributes the gradients of weight and bias; then dx (=|+=) dy W, where dx may be x. Undefined dx: skipped.
  void Backward(StepContext& ctx, const Tensor& x, const Tensor& dy, const Tensor& dx, ops::Accumulate accumulate);
  void VisitParams(absl::FunctionRef<void(Param&)> visit);

 private:
  Param weight_;
  std::optional<Param> bias_;
};

// LayerNorm or RMSNorm on tensors.
class Norm {
 public:
  Norm(std::string name, const config::TransformerConfig& config);
  Shape StatsShape(int64_t rows) const { return {rows, bias_.has_value() ? 2 : 1}; }
  void Forward(StepContext& ctx, const Tensor& x, const Tensor& y, const Tensor& stats);
  // dx may alias dy.
  void Backward(StepContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& stats, const Tensor& dx);
  void VisitParams(absl::FunctionRef<void(Param&)> visit);

 private:
  Param weight_;
  std::optional<Param> bias_;
  float epsilon_;
};

// Token ids i32 [T] -> [T, D]: token table, plus position table for learned positions.
class Embedding : public Module {
 public:
  explicit Embedding(const config::TransformerConfig& config);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;
  Param& tokens() { return tokens_; }  // a tied head shares it

 private:
  Param tokens_;
  std::optional<Param> positions_;
};

// out(attention(rope(qk_norm(q)), rope(qk_norm(k)), v)) of norm(x); the residual is outside. Rows of a shard attend to
// those of other ranks (parallel/sequence_attention.h); all else of a transformer works row by row.
class AttentionBlock : public Module {
 public:
  // `multiplier`: on the scores, beside 1 / sqrt(head size).
  AttentionBlock(const std::string& name, const config::TransformerConfig& config, double multiplier = 1);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;

 private:
  struct Heads {
    Tensor q, k, v, qk;  // [T, heads, C], views of one [T, (H + 2K) C]; qk: of q's and k's heads
  };
  Heads Split(const Tensor& fused) const;
  AttentionHeads AllHeads() const { return {heads_, key_heads_, size_, scale_}; }
  // Backward of the projections and all before them; `dfused` is the gradient of what attention read.
  Tensor BackwardFrom(StepContext& ctx, const StepContext::FrameRecord& frame, const SeqLayout& layout,
                      const Tensor& dfused);
  std::string name_;
  bool rope_, qk_norm_;
  int64_t width_, heads_, key_heads_, size_;
  float theta_, epsilon_, scale_;
  Norm norm_;
  Linear q_, k_, v_, out_;
  Param q_norm_, k_norm_;
};

// down(gelu(up(n))) or down(silu(gate(n)) * up(n)) of n = norm(x).
class MlpBlock : public Module {
 public:
  // kRecompute: Backward makes the inner activations again from the block's input.
  enum class Inner : uint8_t { kKeep, kRecompute };
  MlpBlock(const std::string& name, const config::TransformerConfig& config, Inner inner = Inner::kKeep);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;

 private:
  // norm(x) and its projections; `stats` are written.
  void Expand(StepContext& ctx, const Tensor& x, const Tensor& stats, const Tensor& hidden);
  void Activate(StepContext& ctx, const Tensor& hidden, const Tensor& y) const;
  int64_t width_, ffn_;
  bool gated_;
  Inner inner_;
  Norm norm_;
  std::optional<Linear> gate_;
  Linear up_, down_;
};

// Drops units by token and column (runtime/ops/ops.h); nothing is kept but the layout.
class DropoutLayer : public Module {
 public:
  DropoutLayer(std::string name, float rate) : name_(std::move(name)), rate_(rate) {}
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)>) override {}

 private:
  std::string name_;
  float rate_;
};

// A norm as a module of its own: the one before the head.
class NormLayer : public Module {
 public:
  NormLayer(std::string name, const config::TransformerConfig& config) : norm_(std::move(name), config) {}
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override { norm_.VisitParams(visit); }

 private:
  Norm norm_;
};

// The head and its loss. Mode::kEval: Forward adds the loss "loss" (sum over tokens with a label, weight = their
// number). Mode::kTrain: Backward does, together with the gradients, times ctx.grad_scale(); so logits never exist
// whole. Forward returns its input.
class LmHead : public Module {
 public:
  // `tied`: the token table, owned by the embedding; null: an own weight "head.weight". `multiplier`: on the logits.
  LmHead(const config::TransformerConfig& config, Param* tied, double multiplier = 1);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override { visit(*weight_); }
  // Logits f32 [R, V] of rows of hidden, live.
  Tensor Logits(StepContext& ctx, const Tensor& hidden);

 private:
  Param own_;
  Param* weight_;
  float logit_scale_;
};

}  // namespace shoal
