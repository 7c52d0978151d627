// Reads checkpoints outside training: whole tensors for evaluation and sampling, inspection, differences, export.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/checkpoint/manifest.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// The checkpoint that `path` means: a checkpoint folder itself, or a run directory (its best, or else its latest).
absl::StatusOr<std::string> FindCheckpoint(const std::string& path);

// Of a run with optim.ema: its averages of weights and statistics, or what training goes on with. kAverages of a
// checkpoint without them are the latter.
enum class Weights : uint8_t { kAverages, kTrained };

class CheckpointReader {
 public:
  static absl::StatusOr<CheckpointReader> Open(const std::string& folder);
  bool has_averages() const;
  const Manifest& manifest() const { return manifest_; }
  // The whole tensor in its true shape, f32; checksums are verified. DataLoss names tensor and file.
  absl::StatusOr<Tensor> Read(const std::string& name) const;
  // The same of a parameter or buffer.
  absl::StatusOr<Tensor> ReadWeight(const std::string& name, Weights which) const;

 private:
  std::string folder_;
  Manifest manifest_;
};

// A table of tensors (shape, norm, largest value), then scalars.
absl::StatusOr<std::string> InspectCheckpoint(const std::string& path);
// Per tensor: largest and relative difference; what only one of them has.
absl::StatusOr<std::string> DiffCheckpoints(const std::string& a, const std::string& b);
// The model's weights (no optimizer state) as one safetensors file.
absl::Status ExportWeights(const std::string& path, const std::string& out_file, Weights which);

}  // namespace shoal
