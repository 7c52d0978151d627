#include "models/model.h"

#include <glog/logging.h>

#include "models/resnet.h"
#include "models/transformer.h"

namespace shoal {

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const Param* param : params_) count += param->size();
  return count;
}

void Model::CollectState() {
  for (Param* param : AssignIds(*this)) params_.push_back(param);
  VisitBuffers([this](Buffer& buffer) { buffers_.push_back(&buffer); });
}

Recomputation RecomputedBy(const config::ParallelConfig& config) {
  Recomputation recomputed;
  if (config.recompute() == config::ParallelConfig::MLP) recomputed.what = Recomputed::kMlps;
  if (config.recompute() == config::ParallelConfig::BLOCK) recomputed.what = Recomputed::kBlocks;
  if (config.has_recompute_blocks()) recomputed.blocks = config.recompute_blocks();
  return recomputed;
}

std::unique_ptr<Model> MakeModel(const config::ModelConfig& config, Recomputation recomputed) {
  if (config.has_resnet()) return std::make_unique<ResNet>(config.resnet(), recomputed);
  CHECK(config.has_transformer()) << "a resolved job has a model";
  return std::make_unique<Transformer>(config.transformer(), recomputed);
}

}  // namespace shoal
