// The safetensors format: u64 header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/file_system.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

struct SafetensorsEntry {
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0, bytes = 0;  // from the file's begin
};

// Checks everything: lengths, JSON, dtypes, shapes, ranges, overlaps. DataLoss names the tensor and both values.
absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensorsHeader(absl::Span<const char> file);

// A file mapped for reading; tensors are read-only views of it.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  Tensor View(const SafetensorsEntry& entry) const;

 private:
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, SafetensorsEntry> entries_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;  // contiguous host
};
// Header of a file with these tensors one after the other, padded so that data begins on 64 bytes.
std::string SafetensorsHeader(absl::Span<const NamedTensor> tensors);
// Writes, syncs and closes. Not atomic: the caller renames.
absl::Status WriteSafetensors(FileSystem& files, const std::string& path, absl::Span<const NamedTensor> tensors);

}  // namespace shoal
