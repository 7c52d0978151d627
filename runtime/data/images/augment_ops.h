// The fourteen operations of RandAugment (arXiv 1909.13719) on 8-bit pixels, with Pillow's arithmetic: the same bytes
// as ImageOps, ImageEnhance and Image.transform(AFFINE, NEAREST).
#pragma once

#include <array>
#include <cstdint>

#include "runtime/data/images/image.h"

namespace shoal {

enum class AugmentOp : uint8_t {
  kIdentity,
  kAutoContrast,  // stretches each channel to 0..255
  kEqualize,      // a flat histogram of each channel
  kRotate,        // degrees, counter-clockwise around the centre
  kSolarize,      // inverts pixels at or above a threshold
  kColor,         // factor: 0 grey, 1 unchanged
  kPosterize,     // bits kept
  kContrast,      // factor: 0 the image's mean grey
  kBrightness,    // factor: 0 black
  kSharpness,     // factor: 0 smoothed
  kShearX,        // pixels per row
  kShearY,        // pixels per column
  kTranslateX,    // pixels, positive to the left
  kTranslateY,    // pixels, positive upwards
};
constexpr int kAugmentOps = 14;

using Fill = std::array<uint8_t, 3>;  // per channel; where a shifted image has no pixel

// `image` has 1 or 3 channels; on grey ones kColor changes nothing. `spare` is working memory.
void ApplyAugment(AugmentOp op, double argument, const Fill& fill, Image& image, Image& spare);

}  // namespace shoal
