// Hugging Face model folders: config.json and safetensors (one file, or shards with an index) of GPT-2, LLaMA, and
// Qwen3 (LLaMA with QK-norm). Tensor names, fused projections and transposes are translated both ways by one table.
#pragma once

#include <map>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "models/models.pb.h"
#include "models/width_multipliers.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// True when `path` is a folder with a config.json.
bool IsHuggingFaceFolder(const std::string& path);

struct HuggingFaceModel {
  config::TransformerConfig config;       // every field set that config.json settles
  std::map<std::string, Tensor> weights;  // by Shoal's names, f32, contiguous
};
// DataLoss names the file with what is missing, damaged or of the wrong shape; InvalidArgument names what the folder's
// config.json asks for that these layers do not do (other activations, scaled rotary positions, ...). With
// `multipliers` the weights are those of a model that has them and computes what the folder's does (FoldedFactor).
absl::StatusOr<HuggingFaceModel> ReadHuggingFace(const std::string& folder, const WidthMultipliers& multipliers = {});

// Writes config.json and model.safetensors (f32) into `folder`, which must not hold a model yet. `read` gives a weight
// by Shoal's name; `multipliers`, which no architecture there has, are folded into weights. InvalidArgument when no
// Hugging Face architecture has this shape of model; it names why.
absl::Status WriteHuggingFace(const config::TransformerConfig& config, const WidthMultipliers& multipliers,
                              absl::FunctionRef<absl::StatusOr<Tensor>(const std::string&)> read,
                              const std::string& folder);

}  // namespace shoal
