// Bilinear resizing with a filter that widens as the image shrinks (no aliasing), in Pillow's 22-bit fixed point: the
// same bytes as Image.resize(..., BILINEAR), whatever the machine. Rows come first; Pillow 13 begins with columns where
// the width grows and the height shrinks, and then differs by one here and there.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/images/image.h"

namespace shoal {

// The part of a resized image that is wanted.
struct ResizedPart {
  int full_width = 0, full_height = 0;  // the whole image is resized to this
  int x = 0, y = 0, width = 0, height = 0;
};

// Holds the tables and rows of one thread; their memory is used again.
class Resizer {
 public:
  // Writes part.width x part.height dense pixels to `out`: only they are computed.
  void Resize(const ImageView& in, const ResizedPart& part, uint8_t* out);

 private:
  struct Axis {
    int taps = 0;                   // of each output, at most
    std::vector<int32_t> first;     // input of each output's first tap
    std::vector<int32_t> count;     // taps of each output
    std::vector<int32_t> weights;   // [outputs, taps], 22 bits
    std::vector<double> unrounded;  // of one output
  };
  static void Prepare(int in, int full_out, int begin, int count, Axis& axis);
  Axis horizontal_, vertical_;
  std::vector<uint8_t> rows_;  // resized horizontally
  std::vector<int32_t> sums_;  // of one row of the vertical pass
};

}  // namespace shoal
