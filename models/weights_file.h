// Weights to start from: one safetensors file in Shoal's names and true shapes, or a Hugging Face folder.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "models/transformer.h"
#include "parallel/data_parallel.h"

namespace shoal {

// Fills `dp` (weights and masters) from `path`, f32 or bf16. DataLoss names a missing or extra tensor, or both shapes;
// InvalidArgument names what a Hugging Face folder's config.json says otherwise than the job.
absl::Status LoadWeights(const std::string& path, const Transformer& model, ThreadPool& pool, DataParallel& dp);

}  // namespace shoal
