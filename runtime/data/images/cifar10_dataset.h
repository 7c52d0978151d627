// CIFAR-10's binary version: records of 3,073 bytes, a label (0 to 9) and three 32 x 32 planes. Mapped, not copied.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/images/image_dataset.h"
#include "runtime/data/indexed_dataset.h"

namespace shoal {

class Cifar10Dataset : public ImageDataset {
 public:
  // Records of all files, in the order given. Names of classes come from batches.meta.txt beside the first file, and
  // are "0" to "9" without it. DataLoss names file and record: a size that is no whole number of records, a label
  // above 9.
  static absl::StatusOr<std::unique_ptr<Cifar10Dataset>> Open(const std::vector<std::string>& paths);

  int64_t size() const override { return starts_.back(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  int32_t label(int64_t i) const override { return static_cast<uint8_t>(*Record(i)); }
  ImageShape shape(int64_t /*i*/) const override { return {32, 32, 3}; }
  std::string Name(int64_t i) const override;
  absl::Status Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch, Image& out) const override;

 private:
  size_t FileOf(int64_t i) const;
  const char* Record(int64_t i) const;
  std::vector<std::string> paths_, classes_;
  std::vector<std::shared_ptr<MappedFile>> files_;
  std::vector<int64_t> starts_ = {0};  // first record of each file, and the end
};

}  // namespace shoal
