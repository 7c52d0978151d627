#include "models/weights_file.h"

#include <google/protobuf/text_format.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "models/hugging_face.h"
#include "models/transformer.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/status.h"

namespace shoal {

namespace {

absl::Status SameModel(const std::string& path, const config::TransformerConfig& theirs,
                       const config::TransformerConfig& ours) {
  std::vector<std::string> wrong;
  const auto* descriptor = ours.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const std::string& name = descriptor->field(i)->name();
    // What only training reads, or (max_positions) what the tensors' shapes say where it matters.
    if (name == "preset" || name == "dropout" || name == "init_std" || name == "max_positions") continue;
    if (name == "rope_theta" && ours.positions() != config::TransformerConfig::ROPE) continue;
    const auto text = [&](const config::TransformerConfig& c) {
      std::string value;
      google::protobuf::TextFormat::PrintFieldValueToString(c, descriptor->field(i), -1, &value);
      return value;
    };
    if (text(theirs) != text(ours)) {
      wrong.push_back(absl::StrCat("model.transformer.", name, " is ", text(ours), "; ", path, " has ", text(theirs)));
    }
  }
  return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
}

}  // namespace

absl::Status LoadWeights(const std::string& path, const config::ModelConfig& config, const Model& model,
                         ThreadPool& pool, DataParallel& dp) {
  std::map<std::string, Tensor> weights;
  std::unique_ptr<SafetensorsFile> file;
  if (IsHuggingFaceFolder(path)) {
    if (!config.has_transformer())
      return absl::InvalidArgumentError(
          absl::StrCat("model.initial_weights: ", path, " is a Hugging Face folder; those are read for transformers"));
    SHOAL_ASSIGN_OR_RETURN(HuggingFaceModel read,
                           ReadHuggingFace(path, static_cast<const Transformer&>(model).multipliers()));
    SHOAL_RETURN_IF_ERROR(SameModel(path, read.config, config.transformer()));
    weights = std::move(read.weights);
  } else {
    SHOAL_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(path));
    for (const auto& [name, entry] : file->entries()) weights[name] = file->View(entry);
  }
  OpContext ctx{.pool = &pool};
  // The tensor of a name, taken out of `weights`.
  const auto take = [&](const std::string& name, const Shape& shape) -> absl::StatusOr<Tensor> {
    const auto at = weights.find(name);
    if (at == weights.end())
      return absl::DataLossError(absl::StrCat(path, ": tensor '", name, "' is missing; the model needs it"));
    if (at->second.shape() != shape) {
      return absl::DataLossError(absl::StrCat(path, ": tensor '", name, "' has shape ", ShapeString(at->second.shape()),
                                              ", the model's has ", ShapeString(shape)));
    }
    const Tensor found = at->second;
    weights.erase(at);
    return found;
  };
  for (const Param* param : model.params()) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor found, take(param->name, param->shape));
    dp.SetWeight(pool, *param, found);
  }
  for (Buffer* buffer : model.buffers()) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor found, take(buffer->name, buffer->value.shape()));
    ops::Copy(ctx, found, buffer->value);
  }
  if (!weights.empty())
    return absl::DataLossError(
        absl::StrCat(path, ": tensor '", weights.begin()->first, "' belongs to no parameter of this model"));
  return absl::OkStatus();
}

}  // namespace shoal
