#include "comm/codec/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/kernels.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Elements between what is in work and what is prefetched: the hardware's own prefetching starts anew with every page.
constexpr int64_t kAhead = 1024;

// Whatever the width of vectors, 16 elements are taken at once and element i adds to lane i % 16 of sums.
constexpr int kLanes = 16;
using Floats = hn::CappedTag<float, kLanes>;
#if HWY_TARGET == HWY_SCALAR
using Doubles = hn::Rebind<double, Floats>;
#else
using Doubles = hn::Repartition<double, Floats>;
#endif
using Words = hn::RebindToUnsigned<Floats>;
using Ints = hn::RebindToSigned<Floats>;
using Bytes = hn::Rebind<uint8_t, Floats>;
using Vector = hn::Vec<Floats>;
constexpr int kWidth = static_cast<int>(hn::MaxLanes(Floats())), kVectors = kLanes / kWidth;

template <class T, class F>
HWY_INLINE T Fold(T* lanes, F fn) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] = fn(lanes[l], lanes[l + half]);
  }
  return lanes[0];
}
HWY_INLINE double SumOf(double* lanes) {
  return Fold(lanes, [](double a, double b) { return a + b; });
}

// Sums of squares in double. The square of a float is exact there, so that fusing it with the sum changes no bits.
class Squares {
 public:
  HWY_INLINE Squares() {
    for (int v = 0; v < kVectors; ++v) low_[v] = high_[v] = hn::Zero(Doubles());
  }
  HWY_INLINE void Add(int v, Vector x) {
#if HWY_TARGET == HWY_SCALAR
    const auto whole = hn::PromoteTo(Doubles(), x);
    low_[v] = hn::MulAdd(whole, whole, low_[v]);
#else
    const hn::Half<Floats> half;
    const auto low = hn::PromoteTo(Doubles(), hn::LowerHalf(half, x));
    const auto high = hn::PromoteTo(Doubles(), hn::UpperHalf(half, x));
    low_[v] = hn::MulAdd(low, low, low_[v]);
    high_[v] = hn::MulAdd(high, high, high_[v]);
#endif
  }
  // With the elements behind the last 16.
  HWY_INLINE double Sum(const float* rest, int64_t n) const {
    HWY_ALIGN double lanes[kLanes];
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(low_[v], Doubles(), lanes + v * kWidth);
      if (kWidth > 1) hn::Store(high_[v], Doubles(), lanes + v * kWidth + kWidth / 2);
    }
    for (int64_t l = 0; l < n; ++l) lanes[l] += static_cast<double>(rest[l]) * static_cast<double>(rest[l]);
    return SumOf(lanes);
  }

 private:
  hn::Vec<Doubles> low_[kVectors], high_[kVectors];
};

template <bool kResidual>
HWY_INLINE Stretch Load(const float* gradient, const float* residual, float scale, int64_t n, float* x) {
  const Floats d;
  const Vector scales = hn::Set(d, scale);
  const auto scalar = [&](int64_t i) HWY_ATTR { return kResidual ? gradient[i] + scale * residual[i] : gradient[i]; };
  Vector min[kVectors], max[kVectors];
  for (int v = 0; v < kVectors; ++v) min[v] = max[v] = hn::Set(d, scalar(0));
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kWidth;
      Vector value = hn::LoadU(d, gradient + at);
      if constexpr (kResidual) value = hn::Add(value, hn::Mul(scales, hn::LoadU(d, residual + at)));
      hwy::Prefetch(gradient + at + kAhead);
      if constexpr (kResidual) hwy::Prefetch(residual + at + kAhead);
      hn::StoreU(value, d, x + at);
      min[v] = hn::Min(min[v], value);
      max[v] = hn::Max(max[v], value);
      squares.Add(v, value);
    }
  }
  HWY_ALIGN float least[kLanes], most[kLanes];
  for (int v = 0; v < kVectors; ++v) {
    hn::Store(min[v], d, least + v * kWidth);
    hn::Store(max[v], d, most + v * kWidth);
  }
  for (int64_t at = i; at < n; ++at) {
    x[at] = scalar(at);
    least[at - i] = std::min(least[at - i], x[at]);
    most[at - i] = std::max(most[at - i], x[at]);
  }
  const double sum = squares.Sum(x + i, n - i);
  // Adding zero gives both zeros one sign, whichever of them a target takes for the lesser.
  return {sum, Fold(least, [](float a, float b) { return std::min(a, b); }) + 0.0F,
          Fold(most, [](float a, float b) { return std::max(a, b); }) + 0.0F, std::isfinite(sum)};
}
void LoadLoop(const float* gradient, const float* residual, float scale, int64_t n, float* x, Stretch& stretch) {
  if (n == 0) {
    stretch = {};
  } else if (residual == nullptr) {
    stretch = Load<false>(gradient, residual, scale, n, x);
  } else {
    stretch = Load<true>(gradient, residual, scale, n, x);
  }
}

template <bool kResidual>
HWY_INLINE Collected Collect(const float* gradient, const float* residual, float scale, int64_t n, uint32_t least,
                             uint32_t first, uint32_t* indices, float* values, float* left) {
  const Floats d;
  const Words dw;
  const Vector scales = hn::Set(d, scale);
  const auto magnitudes = hn::Set(Ints(), 0x7fffffff), below = hn::Set(Ints(), static_cast<int32_t>(least - 1));
  Collected collected;
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kWidth;
      Vector value = hn::LoadU(d, gradient + at);
      if constexpr (kResidual) value = hn::Add(value, hn::Mul(scales, hn::LoadU(d, residual + at)));
      hwy::Prefetch(gradient + at + kAhead);
      if constexpr (kResidual) hwy::Prefetch(residual + at + kAhead);
      if (left != nullptr) {
        hwy::Prefetch(left + at + kAhead);
        hn::StoreU(value, d, left + at);
      }
      const auto taken = hn::Gt(hn::And(hn::BitCast(Ints(), value), magnitudes), below);
      squares.Add(v, hn::IfThenZeroElse(hn::RebindMask(d, taken), value));
      if (hn::AllFalse(Ints(), taken)) continue;
      const auto index = hn::Iota(dw, first + static_cast<uint32_t>(at));
      hn::CompressStore(index, hn::RebindMask(dw, taken), dw, indices + collected.count);
      collected.count +=
          static_cast<int64_t>(hn::CompressStore(value, hn::RebindMask(d, taken), d, values + collected.count));
    }
  }
  float rest[kLanes];
  for (int64_t at = i; at < n; ++at) {
    const float value = kResidual ? gradient[at] + scale * residual[at] : gradient[at];
    if (left != nullptr) left[at] = value;
    const bool taken = (std::bit_cast<uint32_t>(value) & 0x7fffffffU) >= least;
    rest[at - i] = taken ? 0 : value;
    if (!taken) continue;
    indices[collected.count] = first + static_cast<uint32_t>(at);
    values[collected.count++] = value;
  }
  collected.squares_below = squares.Sum(rest, n - i);
  return collected;
}
void CollectLoop(const float* gradient, const float* residual, float scale, int64_t n, uint32_t least, uint32_t first,
                 uint32_t* indices, float* values, float* left, Collected& collected) {
  collected = residual == nullptr ? Collect<false>(gradient, residual, scale, n, least, first, indices, values, left)
                                  : Collect<true>(gradient, residual, scale, n, least, first, indices, values, left);
}

struct GridVectors {
  Vector unit, zero, base, lowest, highest, prescale, per_unit;
  HWY_INLINE explicit GridVectors(const QuantiserGrid& g) {
    const Floats d;
    unit = hn::Set(d, g.unit);
    zero = hn::Set(d, g.zero);
    base = hn::Set(d, g.base);
    lowest = hn::Set(d, g.lowest);
    highest = hn::Set(d, g.highest);
    prescale = hn::Set(d, g.prescale);
    per_unit = hn::Set(d, g.per_unit);
  }
  // The same arithmetic as QuantiserGrid::Value.
  HWY_INLINE Vector Value(Vector q) const { return hn::Add(hn::Mul(hn::Sub(q, zero), unit), base); }
};

// 16 elements of x to q and to what is left.
template <Rounding kRounding>
HWY_INLINE void QuantiseLanes(const GridVectors& g, const float* x, const float* draws, uint8_t* q, float* left,
                              Squares& squares) {
  const Floats d;
  const Words dw;
  const Vector ones = hn::Set(d, 0x1p23F);  // the float whose last bit counts ones
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kWidth;
    const Vector value = hn::LoadU(d, x + at);
    Vector to = hn::Add(hn::Mul(hn::Mul(hn::Sub(value, g.base), g.prescale), g.per_unit), g.zero);
    if constexpr (kRounding == Rounding::kStochastic) to = hn::Add(to, hn::LoadU(d, draws + at));
    to = hn::Min(hn::Max(to, g.lowest), g.highest);
    Vector level;
    if constexpr (kRounding == Rounding::kNearest) {
      const Vector sum = hn::Add(to, ones);
      level = hn::Sub(sum, ones);
      hn::StoreU(hn::TruncateTo(Bytes(), hn::BitCast(dw, sum)), Bytes(), q + at);
    } else {
      const auto whole = hn::ConvertTo(Ints(), to);
      level = hn::ConvertTo(d, whole);
      hn::StoreU(hn::TruncateTo(Bytes(), hn::BitCast(dw, whole)), Bytes(), q + at);
    }
    const Vector error = hn::Sub(value, g.Value(level));
    squares.Add(v, error);
    if (left != nullptr) hn::StoreU(error, d, left + at);
  }
}

template <Rounding kRounding>
HWY_INLINE double Quantise(const QuantiserGrid& grid, int64_t n, const float* x, const float* draws, uint8_t* q,
                           float* left) {
  const GridVectors g(grid);
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    if (left != nullptr) hwy::Prefetch(left + i + kAhead);
    QuantiseLanes<kRounding>(g, x + i, draws == nullptr ? nullptr : draws + i, q + i,
                             left == nullptr ? nullptr : left + i, squares);
  }
  if (i == n) return squares.Sum(nullptr, 0);
  float rest[kLanes] = {}, rest_draws[kLanes] = {};
  uint8_t rest_q[kLanes];
  std::copy(x + i, x + n, rest);
  if constexpr (kRounding == Rounding::kStochastic) std::copy(draws + i, draws + n, rest_draws);
  Squares unused;
  QuantiseLanes<kRounding>(g, rest, rest_draws, rest_q, rest, unused);
  std::copy(rest_q, rest_q + (n - i), q + i);
  if (left != nullptr) std::copy(rest, rest + (n - i), left + i);
  return squares.Sum(rest, n - i);
}
double QuantiseLoop(const QuantiserGrid& grid, int64_t n, const float* x, const float* draws, uint8_t* q, float* left) {
  return draws == nullptr ? Quantise<Rounding::kNearest>(grid, n, x, draws, q, left)
                          : Quantise<Rounding::kStochastic>(grid, n, x, draws, q, left);
}

template <bool kAdd>
HWY_INLINE void Dequantise(const QuantiserGrid& grid, const uint8_t* q, int64_t n, float* out) {
  const Floats d;
  const GridVectors g(grid);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    hwy::Prefetch(out + i + kAhead);
    const Vector value = g.Value(hn::ConvertTo(d, hn::PromoteTo(Ints(), hn::LoadU(Bytes(), q + i))));
    hn::StoreU(kAdd ? hn::Add(hn::LoadU(d, out + i), value) : value, d, out + i);
  }
  for (; i < n; ++i) {
    const float value = grid.Value(static_cast<float>(q[i]));
    out[i] = kAdd ? out[i] + value : value;
  }
}
void DequantiseLoop(const QuantiserGrid& grid, const uint8_t* q, int64_t n, bool add, float* out) {
  if (add) {
    Dequantise<true>(grid, q, n, out);
  } else {
    Dequantise<false>(grid, q, n, out);
  }
}

// What 16 elements' distances from the nearest whole number, or the expected squares of rounding by draws, add to
// each width's lanes. Where an integer zero point lies makes no difference.
template <Rounding kRounding>
HWY_INLINE void AddGridErrors(const float* x, Vector base, Vector prescale, const Vector* per_unit, int v,
                              Vector* sums) {
  const Floats d;
  const Vector ones = hn::Set(d, 0x1.8p23F);
  const Vector scaled = hn::Mul(hn::Sub(hn::LoadU(d, x + v * kWidth), base), prescale);
  for (int w = 0; w < kWidths; ++w) {
    const Vector at = hn::Mul(scaled, per_unit[w]);
    const Vector off = hn::Sub(at, hn::Sub(hn::Add(at, ones), ones)), square = hn::Mul(off, off);
    sums[w] = hn::Add(sums[w], kRounding == Rounding::kNearest ? square : hn::Sub(hn::Abs(off), square));
  }
}

// In units, of which there are at most 255: float sums of a block are good to a few parts in a million. One vector of
// the lanes at a time, so that the sums of all widths stay in registers.
template <Rounding kRounding>
HWY_INLINE void GridErrors(const QuantiserGrid* grids, const float* x, int64_t n, double* errors) {
  const Floats d;
  const float scale = grids[kWidths - 1].prescale;  // of the finest: it is enough for all
  Vector per_unit[kWidths];
  for (int w = 0; w < kWidths; ++w) per_unit[w] = hn::Set(d, grids[w].unit > 0 ? 1 / (grids[w].unit * scale) : 0);
  const Vector base = hn::Set(d, grids[0].base), prescale = hn::Set(d, scale);
  float rest[kLanes];
  const int64_t whole = n / kLanes * kLanes;
  std::fill_n(rest, kLanes, grids[0].base);  // which has no error
  std::copy(x + whole, x + n, rest);
  HWY_ALIGN float lanes[kWidths][kLanes];
  for (int v = 0; v < kVectors; ++v) {
    Vector sums[kWidths];
    for (int w = 0; w < kWidths; ++w) sums[w] = hn::Zero(d);
    for (int64_t i = 0; i < whole; i += kLanes) AddGridErrors<kRounding>(x + i, base, prescale, per_unit, v, sums);
    AddGridErrors<kRounding>(rest, base, prescale, per_unit, v, sums);
    for (int w = 0; w < kWidths; ++w) hn::Store(sums[w], d, lanes[w] + v * kWidth);
  }
  for (int w = 0; w < kWidths; ++w) {
    const float sum = Fold(lanes[w], [](float a, float b) { return a + b; });
    errors[w] += static_cast<double>(sum) * static_cast<double>(grids[w].unit) * static_cast<double>(grids[w].unit);
  }
}
void GridErrorsLoop(const QuantiserGrid* grids, bool nearest, const float* x, int64_t n, double* errors) {
  if (nearest) {
    GridErrors<Rounding::kNearest>(grids, x, n, errors);
  } else {
    GridErrors<Rounding::kStochastic>(grids, x, n, errors);
  }
}

constexpr int64_t kGroup = 32;  // elements that share a sum of levels
// Magnitudes in steps, to whole numbers.
HWY_INLINE Vector MagnitudeIn(Vector x, Vector step) {
  return hn::Add(hn::Div(hn::Abs(x), step), hn::Set(Floats(), kLevelRounding));
}
// Levels of 32 elements, and the sum of their magnitudes.
HWY_INLINE uint32_t LevelsOfGroup(const float* x, Vector step, Vector most, int16_t* levels) {
  const Floats d;
  const Ints di;
  const hn::Rebind<int16_t, Floats> d16;
  auto sum = hn::Zero(di);
  for (int at = 0; at < kGroup; at += kWidth) {
    const Vector value = hn::LoadU(d, x + at);
    const auto magnitude = hn::ConvertTo(di, hn::Min(MagnitudeIn(value, step), most));
    sum = hn::Add(sum, magnitude);
    const auto negative = hn::BroadcastSignBit(hn::BitCast(di, value));
    hn::StoreU(hn::DemoteTo(d16, hn::Sub(hn::Xor(magnitude, negative), negative)), d16, levels + at);
  }
  return static_cast<uint32_t>(hn::GetLane(hn::SumOfLanes(di, sum)));
}
void LevelsLoop(const float* x, int64_t n, float step, float most, int16_t* levels, uint32_t* sums) {
  const Vector steps = hn::Set(Floats(), step), mosts = hn::Set(Floats(), most);
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) *sums++ = LevelsOfGroup(x + i, steps, mosts, levels + i);
  if (i == n) return;
  float rest[kGroup] = {};
  int16_t rest_levels[kGroup];
  std::copy(x + i, x + n, rest);
  *sums = LevelsOfGroup(rest, steps, mosts, rest_levels);
  std::copy(rest_levels, rest_levels + (n - i), levels + i);
}

HWY_INLINE Vector FromLevels(const int16_t* levels, Vector step) {
  const hn::Rebind<int16_t, Floats> d16;
  return hn::Mul(hn::ConvertTo(Floats(), hn::PromoteTo(Ints(), hn::LoadU(d16, levels))), step);
}
void LevelErrorsLoop(const float* x, const int16_t* levels, int64_t n, float step, float* left, double& errors) {
  const Floats d;
  const Vector steps = hn::Set(d, step);
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kWidth;
      const Vector error = hn::Sub(hn::LoadU(d, x + at), FromLevels(levels + at, steps));
      squares.Add(v, error);
      if (left != nullptr) hn::StoreU(error, d, left + at);
    }
  }
  float rest[kLanes];
  for (int64_t at = i; at < n; ++at) {
    rest[at - i] = x[at] - static_cast<float>(levels[at]) * step;
    if (left != nullptr) left[at] = rest[at - i];
  }
  errors = squares.Sum(rest, n - i);
}
void FromLevelsLoop(const int16_t* levels, int64_t n, float step, bool add, float* out) {
  const Floats d;
  const Vector steps = hn::Set(d, step);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vector value = FromLevels(levels + i, steps);
    hn::StoreU(add ? hn::Add(hn::LoadU(d, out + i), value) : value, d, out + i);
  }
  for (; i < n; ++i) {
    const float value = static_cast<float>(levels[i]) * step;
    out[i] = add ? out[i] + value : value;
  }
}

// In steps: float sums of a few thousand elements are good to a few parts in a million.
HWY_INLINE void AddStepErrors(const float* x, Vector step, Vector* sums) {
  const Floats d;
  for (int v = 0; v < kVectors; ++v) {
    const Vector value = hn::LoadU(d, x + v * kWidth);
    const Vector off = hn::Sub(hn::Div(hn::Abs(value), step), hn::Trunc(MagnitudeIn(value, step)));
    sums[v] = hn::Add(sums[v], hn::Mul(off, off));
  }
}
void StepErrorsLoop(const float* x, int64_t n, const float* steps, size_t count, double* errors) {
  const Floats d;
  const int64_t whole = n / kLanes * kLanes;
  float rest[kLanes] = {};
  std::copy(x + whole, x + n, rest);
  for (size_t s = 0; s < count; ++s) {
    const Vector step = hn::Set(d, steps[s]);
    Vector sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
    for (int64_t i = 0; i < whole; i += kLanes) AddStepErrors(x + i, step, sums);
    AddStepErrors(rest, step, sums);
    HWY_ALIGN float lanes[kLanes];
    for (int v = 0; v < kVectors; ++v) hn::Store(sums[v], d, lanes + v * kWidth);
    const float sum = Fold(lanes, [](float a, float b) { return a + b; });
    errors[s] += static_cast<double>(sum) * static_cast<double>(steps[s]) * static_cast<double>(steps[s]);
  }
}

// Three steps bring 8 fields of a word together: step s makes, of fields of width w = kBits << s, one in every 8 << s
// bits, pairs of width 2 w in every 16 << s bits.
using LongWords = hn::Repartition<uint64_t, Doubles>;
template <int kBits>
constexpr uint64_t LowFields(int step) {
  uint64_t fields = 0;
  for (int at = 0; at < 64; at += 16 << step) fields |= ((uint64_t{1} << (kBits << step)) - 1) << at;
  return fields;
}
template <int kBits, int kStep>
HWY_INLINE hn::Vec<LongWords> Join(hn::Vec<LongWords> w) {
  constexpr int kApart = 8 << kStep;
  const auto low = hn::Set(LongWords(), LowFields<kBits>(kStep)), high = hn::ShiftLeft<kApart>(low);
  return hn::Or(hn::And(w, low), hn::ShiftRight<kApart - (kBits << kStep)>(hn::And(w, high)));
}
template <int kBits, int kStep>
HWY_INLINE hn::Vec<LongWords> Part(hn::Vec<LongWords> w) {
  constexpr int kApart = 8 << kStep;
  const auto low = hn::Set(LongWords(), LowFields<kBits>(kStep)), high = hn::ShiftLeft<kApart>(low);
  return hn::Or(hn::And(w, low), hn::And(hn::ShiftLeft<kApart - (kBits << kStep)>(w), high));
}
// words[i] = fn(words[i]); there is room for whole vectors.
template <class F>
HWY_INLINE void ForWords(int64_t n, uint64_t* words, F fn) {
  const LongWords d;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d))) {
    hn::StoreU(fn(hn::LoadU(d, words + i)), d, words + i);
  }
}
constexpr int64_t kMostWords = kMostElements / 8 + kLanes;

template <int kBits>
void Pack(const uint8_t* q, int64_t n, uint8_t* code) {
  if constexpr (kBits == 8) {
    std::memcpy(code, q, static_cast<size_t>(n));
  } else if constexpr (kBits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      uint16_t pair;
      std::memcpy(&pair, q + 2 * i, sizeof(pair));
      code[i] = static_cast<uint8_t>(pair | pair >> 4);
    }
  } else {
    if (n == 0) return;
    HWY_ALIGN uint64_t words[kMostWords];
    std::memcpy(words, q, static_cast<size_t>(n));
    ForWords(n / 8, words, [](auto w) HWY_ATTR { return Join<kBits, 2>(Join<kBits, 1>(Join<kBits, 0>(w))); });
    // Whole words are stored, of which the next ones overwrite what is too much, while that stays inside the code.
    int64_t i = 0;
    for (; kBits * i + 8 <= n / 8 * kBits; ++i) std::memcpy(code + kBits * i, words + i, 8);
    for (; i < n / 8; ++i) std::memcpy(code + kBits * i, words + i, kBits);
  }
}

template <int kBits>
void Unpack(const uint8_t* code, int64_t n, uint8_t* q) {
  if constexpr (kBits == 8) {
    std::memcpy(q, code, static_cast<size_t>(n));
  } else if constexpr (kBits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      const auto pair = static_cast<uint16_t>((code[i] | code[i] << 4) & 0x0f0f);
      std::memcpy(q + 2 * i, &pair, sizeof(pair));
    }
  } else {
    HWY_ALIGN uint64_t words[kMostWords];
    int64_t i = 0;
    for (; kBits * i + 8 <= n / 8 * kBits; ++i) std::memcpy(words + i, code + kBits * i, 8);
    for (; i < n / 8; ++i) std::memcpy(words + i, code + kBits * i, kBits);
    ForWords(n / 8, words, [](auto w) HWY_ATTR { return Part<kBits, 0>(Part<kBits, 1>(Part<kBits, 2>(w))); });
    std::memcpy(q, words, static_cast<size_t>(n));
  }
}

using PackFn = void (*)(const uint8_t*, int64_t, uint8_t*);
constexpr PackFn kPack[] = {Pack<2>, Pack<3>, Pack<4>, Pack<5>, Pack<6>, Pack<7>, Pack<8>};
constexpr PackFn kUnpack[] = {Unpack<2>, Unpack<3>, Unpack<4>, Unpack<5>, Unpack<6>, Unpack<7>, Unpack<8>};
void PackLoop(int bits, const uint8_t* q, int64_t n, uint8_t* code) { kPack[bits - kLeastBits](q, n, code); }
void UnpackLoop(int bits, const uint8_t* code, int64_t n, uint8_t* q) { kUnpack[bits - kLeastBits](code, n, q); }

// Philox4x32-10 of 16 counters at once, as Rng::Words.
void DrawLoop(uint32_t key0, uint32_t key1, uint64_t hi, uint64_t lo, int64_t counters, float* __restrict out) {
  for (int64_t first = 0; first < counters; first += kLanes) {
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t at = lo + static_cast<uint64_t>(first + l);
      c0[l] = static_cast<uint32_t>(at);
      c1[l] = static_cast<uint32_t>(at >> 32);
      c2[l] = static_cast<uint32_t>(hi);
      c3[l] = static_cast<uint32_t>(hi >> 32);
    }
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
      for (int l = 0; l < kLanes; ++l) {
        const uint64_t p0 = uint64_t{0xD2511F53U} * c0[l], p1 = uint64_t{0xCD9E8D57U} * c2[l];
        c0[l] = static_cast<uint32_t>(p1 >> 32) ^ c1[l] ^ k0;
        c1[l] = static_cast<uint32_t>(p1);
        c2[l] = static_cast<uint32_t>(p0 >> 32) ^ c3[l] ^ k1;
        c3[l] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
    const int count = static_cast<int>(std::min<int64_t>(kLanes, counters - first));
    for (int l = 0; l < count; ++l) {
      const uint32_t words[4] = {c0[l], c1[l], c2[l], c3[l]};
      float* to = out + 8 * (first + l);
      for (int w = 0; w < 4; ++w) {
        to[2 * w] = static_cast<float>(words[w] & 0xffffU) * 0x1p-16F;
        to[2 * w + 1] = static_cast<float>(words[w] >> 16) * 0x1p-16F;
      }
    }
  }
}

double RoundToBf16Loop(int64_t n, float* __restrict x, uint16_t* __restrict code) {
  for (int64_t i = 0; i < n; ++i) {
    const auto u = std::bit_cast<uint32_t>(x[i]);
    uint32_t rounded = (u + 0x7fffU + (u >> 16 & 1U)) >> 16;
    rounded = (rounded & 0x7fffU) == 0x7f80U && (u & 0x7fffffffU) < 0x7f800000U ? rounded - 1 : rounded;
    rounded = (u & 0x7fffffffU) > 0x7f800000U ? u >> 16 | 0x40U : rounded;
    code[i] = static_cast<uint16_t>(rounded);
    x[i] = x[i] - std::bit_cast<float>(rounded << 16);
  }
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) squares.Add(v, hn::LoadU(Floats(), x + i + v * kWidth));
  }
  return squares.Sum(x + i, n - i);
}

void FromBf16Loop(const uint16_t* __restrict code, int64_t n, bool add, float* __restrict out) {
  if (add) {
    for (int64_t i = 0; i < n; ++i) out[i] = out[i] + std::bit_cast<float>(static_cast<uint32_t>(code[i]) << 16);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(code[i]) << 16);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(LoadLoop);
HWY_EXPORT(CollectLoop);
HWY_EXPORT(QuantiseLoop);
HWY_EXPORT(DequantiseLoop);
HWY_EXPORT(GridErrorsLoop);
HWY_EXPORT(LevelsLoop);
HWY_EXPORT(LevelErrorsLoop);
HWY_EXPORT(FromLevelsLoop);
HWY_EXPORT(StepErrorsLoop);
HWY_EXPORT(PackLoop);
HWY_EXPORT(UnpackLoop);
HWY_EXPORT(DrawLoop);
HWY_EXPORT(RoundToBf16Loop);
HWY_EXPORT(FromBf16Loop);

Stretch LoadRun(const CodecInput& input, int64_t at, int64_t n, float* x) {
  Stretch stretch;
  HWY_DYNAMIC_DISPATCH(LoadLoop)
  (input.gradient + at, input.residual == nullptr ? nullptr : input.residual + at, input.residual_scale, n, x, stretch);
  return stretch;
}
Collected CollectRun(const CodecInput& input, int64_t at, int64_t n, uint32_t least, uint32_t* indices, float* values) {
  Collected collected;
  HWY_DYNAMIC_DISPATCH(CollectLoop)
  (input.gradient + at, input.residual == nullptr ? nullptr : input.residual + at, input.residual_scale, n, least,
   static_cast<uint32_t>(at), indices, values, input.left == nullptr ? nullptr : input.left + at, collected);
  return collected;
}
double QuantiseRun(const QuantiserGrid& grid, int64_t n, const float* x, const float* draws, uint8_t* q, float* left) {
  return HWY_DYNAMIC_DISPATCH(QuantiseLoop)(grid, n, x, draws, q, left);
}
void DequantiseRun(const QuantiserGrid& grid, const uint8_t* q, int64_t n, Codec::Into into, float* out) {
  HWY_DYNAMIC_DISPATCH(DequantiseLoop)(grid, q, n, into == Codec::Into::kAdd, out);
}
void GridErrorsRun(const QuantiserGrid* grids, Rounding rounding, const float* x, int64_t n, double* errors) {
  HWY_DYNAMIC_DISPATCH(GridErrorsLoop)(grids, rounding == Rounding::kNearest, x, n, errors);
}
void LevelsRun(const float* x, int64_t n, float step, float most, int16_t* levels, uint32_t* sums) {
  HWY_DYNAMIC_DISPATCH(LevelsLoop)(x, n, step, most, levels, sums);
}
double LevelErrorsRun(const float* x, const int16_t* levels, int64_t n, float step, float* left) {
  double errors;
  HWY_DYNAMIC_DISPATCH(LevelErrorsLoop)(x, levels, n, step, left, errors);
  return errors;
}
void FromLevelsRun(const int16_t* levels, int64_t n, float step, Codec::Into into, float* out) {
  HWY_DYNAMIC_DISPATCH(FromLevelsLoop)(levels, n, step, into == Codec::Into::kAdd, out);
}
void StepErrorsRun(const float* x, int64_t n, absl::Span<const float> steps, double* errors) {
  HWY_DYNAMIC_DISPATCH(StepErrorsLoop)(x, n, steps.data(), steps.size(), errors);
}
void PackRun(int bits, const uint8_t* q, int64_t n, uint8_t* code) { HWY_DYNAMIC_DISPATCH(PackLoop)(bits, q, n, code); }
void UnpackRun(int bits, const uint8_t* code, int64_t n, uint8_t* q) {
  HWY_DYNAMIC_DISPATCH(UnpackLoop)(bits, code, n, q);
}
void DrawRun(std::array<uint32_t, 2> key, uint64_t hi, uint64_t lo, int64_t counters, float* out) {
  HWY_DYNAMIC_DISPATCH(DrawLoop)(key[0], key[1], hi, lo, counters, out);
}
double RoundToBf16Run(int64_t n, float* x, uint16_t* code) { return HWY_DYNAMIC_DISPATCH(RoundToBf16Loop)(n, x, code); }
void FromBf16Run(const uint16_t* code, int64_t n, Codec::Into into, float* out) {
  HWY_DYNAMIC_DISPATCH(FromBf16Loop)(code, n, into == Codec::Into::kAdd, out);
}

}  // namespace shoal
#endif
