#include "comm/codec/quantiser_grid.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace shoal {
namespace {

constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

// The least float unit of which `steps` cover `range`.
float UnitOf(double range, double steps) {
  const auto unit = static_cast<float>(range / steps);
  return static_cast<double>(unit) * steps < range ? std::nextafter(unit, kFloatInfinity) : unit;
}

void WriteHeader(float unit, float origin, uint8_t* code) {
  const float header[2] = {unit, origin};
  std::memcpy(code, header, sizeof(header));
}

}  // namespace

QuantiserGrid QuantiserGrid::Of(float min, float max, int bits, Rounding rounding) {
  QuantiserGrid grid;
  const int levels = (1 << bits) - 1;
  const double range = static_cast<double>(max) - static_cast<double>(min);
  const bool spends_step = rounding == Rounding::kStochastic && min < 0 && max > 0;
  grid.unit = UnitOf(range, spends_step ? levels - 1 : levels);
  if (min > 0 || max < 0) {
    grid.base = min;
  } else if (grid.unit > 0) {
    const double below = -static_cast<double>(min) / static_cast<double>(grid.unit);
    const double zero = rounding == Rounding::kNearest ? std::nearbyint(below) : std::ceil(below);
    grid.zero = static_cast<float>(std::clamp<double>(zero, max > 0 ? 0 : levels, min < 0 ? levels : 0));
  }
  if (grid.unit > 0) {
    grid.prescale = grid.unit < std::numeric_limits<float>::min() ? 0x1p24f : 1;
    grid.per_unit = 1 / (grid.unit * grid.prescale);
  }
  // Next to the largest float the grid's ends may lie beyond it.
  grid.highest = static_cast<float>(levels);
  while (grid.Value(grid.highest) == kFloatInfinity) --grid.highest;
  while (grid.Value(grid.lowest) == -kFloatInfinity) ++grid.lowest;
  return grid;
}

void QuantiserGrid::Write(uint8_t* code) const {
  if (base != 0) {
    WriteHeader(-unit, base, code);
  } else {
    WriteHeader(unit, zero, code);
  }
}

QuantiserGrid QuantiserGrid::Read(const uint8_t* code) {
  float header[2];
  std::memcpy(header, code, sizeof(header));
  QuantiserGrid grid;
  grid.unit = std::abs(header[0]);
  (std::signbit(header[0]) ? grid.base : grid.zero) = header[1];
  return grid;
}

void QuantiserGrid::WriteNaN(uint8_t* code) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  WriteHeader(kNaN, kNaN, code);
}

}  // namespace shoal
