// manifest.json: what a checkpoint holds and where.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

struct ManifestPiece {
  std::string file;            // in the checkpoint's folder
  std::string key;             // name inside that file
  int64_t begin = 0, end = 0;  // elements of the flattened tensor
  uint64_t checksum = 0;       // XXH3 of its bytes
};

struct ManifestTensor {
  Shape shape;                        // true shape of the whole
  std::vector<ManifestPiece> pieces;  // by begin; together they cover the tensor
};

struct Manifest {
  int64_t step = 0;
  int ranks = 1;
  std::map<std::string, ManifestTensor> tensors;
  std::map<std::string, int64_t> integers;
  std::map<std::string, double> reals;
  std::map<std::string, std::string> blobs;
};

std::string ManifestText(const Manifest& manifest);
// DataLoss says what is wrong where; pieces that leave a gap are an error.
absl::StatusOr<Manifest> ParseManifest(absl::string_view text);

}  // namespace shoal
