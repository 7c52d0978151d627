// The grid of a quantised block: an affine one on which zero lies whenever the block's range holds it.
//
//   decoded = (q - zero) * unit + base,  q in 0 .. 2^bits - 1
//
// A range that holds zero has an integer zero point and no base; any other starts at its minimum and has no zero point.
// So zeros stay zeros, and a block of equal values is exact.
#pragma once

#include <cstdint>

namespace shoal {

enum class Rounding : uint8_t { kNearest, kStochastic };

struct QuantiserGrid {
  float unit = 0, zero = 0, base = 0;
  float lowest = 0, highest = 0;     // of the q whose values are finite
  float prescale = 1, per_unit = 0;  // q = (x - base) * prescale * per_unit + zero, before rounding: no part overflows

  // Of finite values from min to max. Units are rounded up, so that the grid covers the range: within half a unit with
  // kNearest, whole with kStochastic, which spends one of its steps on moving zero onto the grid. A unit is never less
  // than the smallest denormal, which makes ranges that small exact.
  static QuantiserGrid Of(float min, float max, int bits, Rounding rounding);
  // Its 8 bytes on the wire: unit, and zero or (the unit's sign bit being set) base. Read() leaves out what only
  // encoding needs.
  static constexpr int64_t kBytes = 8;
  void Write(uint8_t* code) const;
  static QuantiserGrid Read(const uint8_t* code);
  // The header that decodes to NaN whatever follows.
  static void WriteNaN(uint8_t* code);

  float Value(float q) const { return (q - zero) * unit + base; }
};

}  // namespace shoal
