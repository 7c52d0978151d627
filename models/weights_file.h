// Weights to start from: one safetensors file in Shoal's names and true shapes, or a Hugging Face folder.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "models/model.h"
#include "parallel/data_parallel.h"

namespace shoal {

// Fills `dp` (weights and masters) and the model's buffers from `path`, f32 or bf16. `model` is made of `config`. A
// file holds weights as they are trained; a Hugging Face folder what computes the same without the model's multipliers.
// DataLoss names a missing or extra tensor, or both shapes; InvalidArgument names what a Hugging Face folder's
// config.json says otherwise than the job.
absl::Status LoadWeights(const std::string& path, const config::ModelConfig& config, const Model& model,
                         ThreadPool& pool, DataParallel& dp);

}  // namespace shoal
