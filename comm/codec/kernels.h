// The vectorised inner loops of codecs, one per dispatch target. No multiplication is fused with an addition
// (-ffp-contract=off), but where the product is exact, and sums have 16 lanes: every target gives the same bytes and
// the same sums. Arrays do not overlap, but where it says so.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "comm/codec/codec.h"
#include "comm/codec/codecs.h"
#include "comm/codec/quantiser_grid.h"

namespace shoal {

// Elements of a stretch that kernels take at once; blocks are no longer.
constexpr int64_t kMostElements = 8192;

// x = gradient + residual_scale * residual of elements [at, at + n), n <= kMostElements.
struct Stretch {
  double squares = 0;
  float min = 0, max = 0;
  bool finite = true;
};
Stretch LoadRun(const CodecInput& input, int64_t at, int64_t n, float* x);
// Encodes stretch by stretch: fn(x, n, at) turns x into what is left and returns its squares.
template <class F>
Encoded EncodeStretches(const CodecInput& input, F fn) {
  float x[kMostElements];
  Encoded encoded;
  for (int64_t at = 0; at < input.size; at += kMostElements) {
    const int64_t n = std::min(kMostElements, input.size - at);
    const Stretch stretch = LoadRun(input, at, n, x);
    encoded.squares += stretch.squares;
    encoded.finite = encoded.finite && stretch.finite;
    encoded.error_squares += fn(x, n, at);
    if (input.left != nullptr) std::copy_n(x, n, input.left + at);
  }
  return encoded;
}

// Elements [at, at + n) of x whose magnitude's bits are at least `least` >= 1, in order; n <= kMostElements. Writes up
// to kCollectSpare elements more to `indices` and `values`. input.left, if not null, becomes x.
constexpr int64_t kCollectSpare = 16;
struct Collected {
  int64_t count = 0;
  double squares_below = 0;  // of those that were not collected
};
Collected CollectRun(const CodecInput& input, int64_t at, int64_t n, uint32_t least, uint32_t* indices, float* values);

// q[i] = x[i] on the grid, to the nearest, or with `draws` in [0, 1) down where they are below the rest. `left`, if not
// null, becomes x - decoded, and may be x; returns its squares.
double QuantiseRun(const QuantiserGrid& grid, int64_t n, const float* x, const float* draws, uint8_t* q, float* left);
// out (+)= decoded.
void DequantiseRun(const QuantiserGrid& grid, const uint8_t* q, int64_t n, Codec::Into into, float* out);
// Adds to errors[w] the squared error of quantising x on grids[w], of kLeastBits + w bits: to the nearest, or what is
// expected of stochastic rounding.
constexpr int kWidths = kMostBits - kLeastBits + 1;
void GridErrorsRun(const QuantiserGrid* grids, Rounding rounding, const float* x, int64_t n, double* errors);

// Levels of x in multiples of step > 0: floor(|x| / step + kLevelRounding) with x's sign, at most `most` in magnitude.
// `sums` are of the magnitudes of every 32. Rounding that little down is worth more in shorter codes than it costs.
constexpr float kLevelRounding = 0.44F;
void LevelsRun(const float* x, int64_t n, float step, float most, int16_t* levels, uint32_t* sums);
// left = x - level * step, which may lie over x; null: not wanted. Returns its squares.
double LevelErrorsRun(const float* x, const int16_t* levels, int64_t n, float step, float* left);
// out (+)= level * step.
void FromLevelsRun(const int16_t* levels, int64_t n, float step, Codec::Into into, float* out);
// Adds to errors[s] the squared error of levels in multiples of steps[s] > 0, were no level too large.
void StepErrorsRun(const float* x, int64_t n, absl::Span<const float> steps, double* errors);

// Values of `bits` bits in bytes, to and from 8 in `bits` bytes, the first in the lowest bits. n is a multiple of 8.
void PackRun(int bits, const uint8_t* q, int64_t n, uint8_t* code);
void UnpackRun(int bits, const uint8_t* code, int64_t n, uint8_t* q);

// Draws in [0, 1), multiples of 2^-16, eight of each counter (hi, lo), (hi, lo + 1), ...: two of each word of
// Rng::Words, the lower half first. out[8 counters].
void DrawRun(std::array<uint32_t, 2> key, uint64_t hi, uint64_t lo, int64_t counters, float* out);

// x rounded to bf16, the largest bf16 in place of infinity; x becomes what is left. Returns its squares.
double RoundToBf16Run(int64_t n, float* x, uint16_t* code);
void FromBf16Run(const uint16_t* code, int64_t n, Codec::Into into, float* out);

}  // namespace shoal
