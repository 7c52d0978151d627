// IDX files, the format of MNIST and Fashion-MNIST: grey images of one size and their labels, in two files, plain or
// .gz.
//
// Big endian: u16 0, u8 element type (8 = unsigned byte), u8 number of dimensions, u32 of each, then the elements.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/data/images/image_dataset.h"

namespace shoal {

// What the reader checks of an IDX file, on bytes: for the reader and its fuzzer.
struct ParsedIdx {
  std::vector<int64_t> shape;
  absl::string_view elements;  // of `bytes`
};
// DataLoss: wrong magic, a number of dimensions other than `dimensions`, or a length that does not fit the shape.
absl::StatusOr<ParsedIdx> ParseIdx(absl::string_view bytes, int dimensions);

class IdxDataset : public ImageDataset {
 public:
  // `labels_path` holds as many labels as `images_path` images. Classes are "0" to the greatest label, or as many as
  // `classes` (of the training set), whose labels then must lie below. DataLoss and NotFound name the file.
  static absl::StatusOr<std::unique_ptr<IdxDataset>> Open(const std::string& images_path,
                                                          const std::string& labels_path, int classes = 0);

  int64_t size() const override { return images_.shape[0]; }
  const std::vector<std::string>& classes() const override { return classes_; }
  int32_t label(int64_t i) const override { return static_cast<uint8_t>(labels_.elements[i]); }
  ImageShape shape(int64_t /*i*/) const override {
    return {static_cast<int>(images_.shape[2]), static_cast<int>(images_.shape[1]), 1};
  }
  std::string Name(int64_t i) const override;
  absl::Status Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch, Image& out) const override;

 private:
  std::string path_, image_bytes_, label_bytes_;  // unpacked files
  ParsedIdx images_, labels_;
  std::vector<std::string> classes_;
};

}  // namespace shoal
