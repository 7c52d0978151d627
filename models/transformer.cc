#include "models/transformer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "models/transformer_spec.h"

namespace shoal {
namespace {

std::unique_ptr<Module> ResidualBranch(const config::TransformerConfig& config, const std::string& name,
                                       std::unique_ptr<Module> branch) {
  if (config.dropout() == 0) return std::make_unique<Residual>(std::move(branch));
  auto seq = std::make_unique<Seq>();
  seq->Add(name, std::move(branch));
  seq->Add(name + ".dropout", std::make_unique<DropoutLayer>(name + ".dropout", static_cast<float>(config.dropout())));
  return std::make_unique<Residual>(std::move(seq));
}

}  // namespace

Transformer::Transformer(const config::TransformerConfig& config, Recomputation recomputation) : config_(config) {
  auto embedding = std::make_unique<Embedding>(config);
  Param* table = &embedding->tokens();
  body_.Add("embedding", std::move(embedding));
  if (config.dropout() > 0) {
    body_.Add("embedding.dropout",
              std::make_unique<DropoutLayer>("embedding.dropout", static_cast<float>(config.dropout())));
  }
  for (int layer = 0; layer < config.layers(); ++layer) {
    const std::string name = absl::StrCat("blocks.", layer);
    auto block = std::make_unique<Seq>();
    const Recomputed recomputed = recomputation.Of(layer);
    const auto inner = recomputed == Recomputed::kMlps ? MlpBlock::Inner::kRecompute : MlpBlock::Inner::kKeep;
    const std::string attention = name + ".attention", mlp = name + ".mlp";
    block->Add(attention, ResidualBranch(config, attention, std::make_unique<AttentionBlock>(attention, config)));
    block->Add(mlp, ResidualBranch(config, mlp, std::make_unique<MlpBlock>(mlp, config, inner)));
    if (recomputed == Recomputed::kBlocks)
      body_.Add(name, std::make_unique<Recompute>(std::move(block)));
    else
      body_.Add(name, std::move(block));
  }
  body_.Add("final_norm", std::make_unique<NormLayer>("final_norm", config));
  head_ = std::make_unique<LmHead>(config, config.tied_head() ? table : nullptr);
  CollectState();
}

Batch Transformer::Forward(StepContext& ctx, Batch x) { return head_->Forward(ctx, body_.Forward(ctx, std::move(x))); }

Batch Transformer::Backward(StepContext& ctx, Batch dy) {
  Batch dx = body_.Backward(ctx, head_->Backward(ctx, std::move(dy)));
  ctx.RunDeferred();
  return dx;
}

double Transformer::TrainFlops(absl::Span<const int32_t> lengths, int64_t) const {
  double tokens = 0, squares = 0;
  for (const int32_t length : lengths) {
    tokens += length;
    squares += static_cast<double>(length) * length;
  }
  return tokens > 0 ? TrainFlopsPerToken(config_, squares / tokens) * tokens : 0;
}

void Transformer::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  body_.VisitParams(visit);
  head_->VisitParams(visit);
}

}  // namespace shoal
