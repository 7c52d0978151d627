// ImageTransform: from a stored image to the model's input. Training: decode, crop, flip, RandAugment, normalise, all
// drawn from (seed, epoch, index). Evaluation: decode, resize, centre crop, normalise.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "runtime/data/images/image_dataset.h"
#include "runtime/data/images/image_draws.h"
#include "runtime/data/images/rand_augment.h"
#include "runtime/data/images/resize.h"
#include "runtime/runtime.pb.h"

namespace shoal {

// Working memory of one thread, used again from image to image.
struct ImageScratch {
  DecodeScratch decode;
  Image decoded, pixels, spare;
  Resizer resizer;
};

struct CropBox {
  int x = 0, y = 0, width = 0, height = 0;
};
// torchvision's RandomResizedCrop: up to ten draws of area and logarithm of aspect until one fits, then the middle.
CropBox DrawCrop(ImageDraws& draws, int width, int height, const config::ImageDataConfig& config);

enum class ImageUse : uint8_t { kTrain, kEvaluate };

// DataLoss with both sizes if an image of this shape is smaller than its crop. `config` has its defaults filled in.
absl::Status CheckImageFits(const ImageShape& shape, ImageUse use, const config::ImageDataConfig& config);

// Immutable, so thread-safe.
class ImageTransform {
 public:
  // `config` has its defaults filled in.
  ImageTransform(const config::ImageDataConfig& config, uint64_t seed);

  // Write size x size x channels floats, (pixel / 255 - mean) / std. `drawn_as`: the index whose draws are used,
  // `index` unless the image stands in for an unreadable one. Errors are Decode's, which name the file.
  absl::Status Train(const ImageDataset& data, int64_t index, int64_t epoch, int64_t drawn_as, ImageScratch& scratch,
                     float* x) const;
  absl::Status Evaluate(const ImageDataset& data, int64_t index, ImageScratch& scratch, float* x) const;

 private:
  absl::Status RandomResized(const ImageDataset& data, int64_t index, ImageDraws& draws, ImageScratch& scratch) const;
  absl::Status Padded(const ImageDataset& data, int64_t index, ImageDraws& draws, ImageScratch& scratch) const;
  absl::Status Whole(const ImageDataset& data, int64_t index, ImageScratch& scratch) const;
  absl::Status Centered(const ImageDataset& data, int64_t index, ImageScratch& scratch) const;
  absl::Status Plain(const ImageDataset& data, int64_t index, ImageScratch& scratch) const;  // crop: CENTER or NONE
  void Normalise(const Image& pixels, float* x) const;

  config::ImageDataConfig config_;
  uint64_t seed_;
  int size_, channels_;
  Fill fill_ = {};
  std::optional<RandAugment> rand_augment_;
  std::array<std::array<float, 256>, 3> normalised_;  // of each channel's 256 values
};

}  // namespace shoal
