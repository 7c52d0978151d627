// Decoder-only transformers of GPT-2 and LLaMA style, from one set of layers.
#pragma once

#include <memory>
#include <vector>

#include "models/layers.h"
#include "models/model.h"
#include "models/models.pb.h"
#include "runtime/module/combinators.h"

namespace shoal {

// Token ids in, loss "loss" out (LmHead). Owns its modules; parameters have ids.
class Transformer : public Model {
 public:
  // `config` is resolved (ResolveTransformer).
  explicit Transformer(const config::TransformerConfig& config, Recomputation recomputed = {});
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;
  double TrainFlops(absl::Span<const int32_t> lengths, int64_t images) const override;

  // Hidden rows [T, D] after the final norm, without the head. For sampling, in Mode::kEval.
  Batch Hidden(StepContext& ctx, Batch x) { return body_.Forward(ctx, std::move(x)); }
  LmHead& head() { return *head_; }
  const config::TransformerConfig& config() const { return config_; }

 private:
  config::TransformerConfig config_;
  Seq body_;
  std::unique_ptr<LmHead> head_;
};

}  // namespace shoal
