// ImageDataset: labelled images behind one interface, whatever they are stored as. See folder_dataset.h,
// cifar10_dataset.h and idx_dataset.h for the formats, image_data.h for a training set with its validation set.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/data/images/image.h"

namespace shoal {

// What one thread needs to decode: kept by the caller so that its memory is used again.
struct DecodeScratch {
  std::string file;  // the encoded bytes
  Image wide;        // pixels before channels are converted
};

// Immutable once open, so thread-safe.
class ImageDataset {
 public:
  virtual ~ImageDataset() = default;
  virtual int64_t size() const = 0;
  virtual const std::vector<std::string>& classes() const = 0;  // their names; a label is an index
  virtual int32_t label(int64_t i) const = 0;
  // Known without decoding; channels as stored: 1 grey, 3 colour, 2 and 4 with alpha (or CMYK).
  virtual ImageShape shape(int64_t i) const = 0;
  // For messages: the file, or the file and its record.
  virtual std::string Name(int64_t i) const = 0;
  // Pixels of image i in `channels` (1 or 3). A JPEG that may be shrunk to `least_scale` (in (0, 1]) of its size is
  // decoded at the smallest of 1, 1/2, 1/4, 1/8 that is not below it, which saves most of the time; `out` then has
  // ceil(width * scale) x ceil(height * scale) pixels. Equal arguments give equal pixels on every machine.
  // DataLoss and NotFound name the file.
  virtual absl::Status Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch,
                              Image& out) const = 0;
};

// Some images of another dataset, in the order of `indices`.
class ImageSubset : public ImageDataset {
 public:
  ImageSubset(std::shared_ptr<const ImageDataset> all, std::vector<int64_t> indices)
      : all_(std::move(all)), indices_(std::move(indices)) {}
  int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
  const std::vector<std::string>& classes() const override { return all_->classes(); }
  int32_t label(int64_t i) const override { return all_->label(indices_[i]); }
  ImageShape shape(int64_t i) const override { return all_->shape(indices_[i]); }
  std::string Name(int64_t i) const override { return all_->Name(indices_[i]); }
  absl::Status Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch, Image& out) const override {
    return all_->Decode(indices_[i], channels, least_scale, scratch, out);
  }

 private:
  std::shared_ptr<const ImageDataset> all_;
  std::vector<int64_t> indices_;
};

}  // namespace shoal
