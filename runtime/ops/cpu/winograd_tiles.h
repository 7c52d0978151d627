// The 4x4 tiles that Winograd's convolution cuts an image into, two pixels apart.
#pragma once

#include <cstdint>

#include "runtime/ops/cpu/conv_shape.h"

namespace shoal::cpu {

// Floats between the 16 values of a tile position beyond their size, so that 16 streams do not share a cache set.
constexpr int64_t kStreamPad = 16;
constexpr int64_t kTileValues = 16;
// Tiles of one piece: their transformed values stay in the second-level cache.
constexpr int64_t kPieceTiles = 96;

// An image of n x h x w x c pixels filtered into n x p x q, `padding` zeros around it.
class WinogradTiles {
 public:
  WinogradTiles(int64_t n, int64_t h, int64_t w, int64_t p, int64_t q, int64_t padding)
      : h_(h),
        w_(w),
        p_(p),
        q_(q),
        down_((p + 1) / 2),
        across_((q + 1) / 2),
        padding_(padding),
        tiles_(n * down_ * across_) {}

  int64_t tiles() const { return tiles_; }
  int64_t pieces() const { return (tiles_ + kPieceTiles - 1) / kPieceTiles; }
  // Tiles of piece i: [begin(i), begin(i + 1)), nearly equal shares.
  int64_t begin(int64_t piece) const { return tiles_ * piece / pieces(); }

  // The 16 pixels that tile t reads from x with c channels; `zeros` stands for pixels outside.
  void Inputs(int64_t t, const float* x, int64_t c, const float* zeros, const float** pixels) const {
    const Place at = Find(t);
    for (int64_t i = 0; i < kTileValues; ++i) {
      const int64_t row = 2 * at.row - padding_ + i / 4, column = 2 * at.column - padding_ + i % 4;
      const bool inside = row >= 0 && row < h_ && column >= 0 && column < w_;
      pixels[i] = inside ? x + ((at.n * h_ + row) * w_ + column) * c : zeros;
    }
  }
  // The 2x2 pixels of y with c channels that tile t makes; `outside` stands for pixels beyond the image.
  template <class T>
  void Outputs(int64_t t, T* y, int64_t c, T* outside, T** pixels) const {
    const Place at = Find(t);
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t row = 2 * at.row + i / 2, column = 2 * at.column + i % 2;
      pixels[i] = row < p_ && column < q_ ? y + ((at.n * p_ + row) * q_ + column) * c : outside;
    }
  }

 private:
  struct Place {
    int64_t n, row, column;
  };
  Place Find(int64_t t) const { return {t / across_ / down_, t / across_ % down_, t % across_}; }
  int64_t h_, w_, p_, q_, down_, across_, padding_, tiles_;
};

}  // namespace shoal::cpu
