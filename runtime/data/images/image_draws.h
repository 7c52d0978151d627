// The random numbers of one image in one epoch, in the order of their use: a pure function of (seed, epoch, index).
#pragma once

#include <array>
#include <cstdint>

#include "runtime/base/rng.h"

namespace shoal {

class ImageDraws {
 public:
  ImageDraws(uint64_t seed, int64_t epoch, int64_t index)
      : rng_({seed, RngPurpose::kAugment}),
        epoch_(static_cast<uint64_t>(epoch)),
        index_(static_cast<uint64_t>(index)) {}

  // In [0, 1).
  double Uniform() { return Word() * 0x1p-32; }
  double Between(double least, double most) { return least + (most - least) * Uniform(); }
  // In [0, n).
  int Below(int n) { return static_cast<int>(static_cast<uint64_t>(Word()) * static_cast<uint64_t>(n) >> 32); }
  bool Coin() { return Below(2) == 1; }

 private:
  uint32_t Word() {
    const uint64_t used = used_++;
    if (used % 4 == 0) words_ = rng_.Words(epoch_, index_ << 16 | used / 4);
    return words_[used % 4];
  }
  Rng rng_;
  uint64_t epoch_, index_, used_ = 0;
  std::array<uint32_t, 4> words_ = {};
};

}  // namespace shoal
