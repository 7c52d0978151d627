// RandAugment (arXiv 1909.13719): some layers, each one of fourteen operations chosen at random, at one magnitude.
#pragma once

#include <cstdint>

#include "runtime/data/images/augment_ops.h"
#include "runtime/data/images/image_draws.h"
#include "runtime/runtime.pb.h"

namespace shoal {

// The operation's argument at `magnitude`, on images of `shape`. With t = magnitude / 10 (magnitudes beyond 10 go on
// in a straight line up to the stated bound) and `sign` 1 or -1:
//   rotate                                   sign 30 t degrees
//   shear                                    sign 0.3 t
//   translate                                sign 150/331 t of the side, whole pixels
//   color, contrast, brightness, sharpness   1 + sign 0.9 t, at least 0
//   posterize                                8 - round(4 t) bits, at least 1
//   solarize                                 256 (1 - t), at least 0
// so that every operation grows stronger with the magnitude, as in torchvision (whose 30 is 10 here) and timm's
// "increasing" variants.
double AugmentArgument(AugmentOp op, double magnitude, int sign, const ImageShape& shape);

class RandAugment {
 public:
  RandAugment(const config::RandAugmentConfig& config, const Fill& fill)
      : layers_(config.layers()), magnitude_(config.magnitude()), fill_(fill) {}
  void Apply(ImageDraws& draws, Image& image, Image& spare) const;

 private:
  int layers_;
  double magnitude_;
  Fill fill_;
};

}  // namespace shoal
