#include "runtime/data/images/rand_augment.h"

#include <algorithm>
#include <cmath>

namespace shoal {

double AugmentArgument(AugmentOp op, double magnitude, int sign, const ImageShape& shape) {
  constexpr double kTranslate = 150.0 / 331;
  const double t = magnitude / 10;
  switch (op) {
    case AugmentOp::kIdentity:
    case AugmentOp::kAutoContrast:
    case AugmentOp::kEqualize:
      return 0;
    case AugmentOp::kRotate:
      return sign * 30 * t;
    case AugmentOp::kSolarize:
      return std::max(0.0, 256 * (1 - t));
    case AugmentOp::kPosterize:
      return std::max(1.0, 8 - std::round(4 * t));
    case AugmentOp::kColor:
    case AugmentOp::kContrast:
    case AugmentOp::kBrightness:
    case AugmentOp::kSharpness:
      return std::max(0.0, 1 + sign * 0.9 * t);
    case AugmentOp::kShearX:
    case AugmentOp::kShearY:
      return sign * 0.3 * t;
    case AugmentOp::kTranslateX:
      return sign * std::trunc(kTranslate * t * shape.width);
    case AugmentOp::kTranslateY:
      return sign * std::trunc(kTranslate * t * shape.height);
  }
  return 0;
}

void RandAugment::Apply(ImageDraws& draws, Image& image, Image& spare) const {
  for (int layer = 0; layer < layers_; ++layer) {
    const auto op = static_cast<AugmentOp>(draws.Below(kAugmentOps));
    const int sign = draws.Coin() ? 1 : -1;
    ApplyAugment(op, AugmentArgument(op, magnitude_, sign, image.shape()), fill_, image, spare);
  }
}

}  // namespace shoal
