#include "comm/codec/quantiser_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/quantiser_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

#include "comm/codec/draws-inl.h"
#include "comm/codec/lanes-inl.h"
#include "comm/codec/packing-inl.h"

// Elements whose q lie in the first-level cache between rounding and packing.
constexpr int64_t kChunk = 1024;

struct Range {
  float min, max;
  double squares;  // not finite: nor is an x
};

template <bool kResidual>
HWY_INLINE Range RangeOf(const CodecInput& in, int64_t begin, int64_t n) {
  const Floats d;
  const Vector scale = hn::Set(d, in.residual_scale);
  const float first = ScalarX<kResidual>(in, begin);
  Vector min[kVectors], max[kVectors];
  for (int v = 0; v < kVectors; ++v) min[v] = max[v] = hn::Set(d, first);
  Squares squares;
  const int64_t end = begin + n;
  int64_t i = begin;
  for (; i + kStripe <= end; i += kStripe) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kLanes;
      const Vector x = LoadX<kResidual>(in.gradient + at, in.residual + at, scale);
      min[v] = hn::Min(min[v], x);
      max[v] = hn::Max(max[v], x);
      squares.Add(v, x);
    }
  }
  float rest[kStripe];
  Range range = {first, first, 0};
  for (int64_t l = 0; i + l < end; ++l) {
    rest[l] = ScalarX<kResidual>(in, i + l);
    range.min = std::min(range.min, rest[l]);
    range.max = std::max(range.max, rest[l]);
  }
  range.squares = squares.Sum(rest, end - i);
  for (int v = 0; v < kVectors; ++v) {
    range.min = std::min(range.min, hn::GetLane(hn::MinOfLanes(d, min[v])));
    range.max = std::max(range.max, hn::GetLane(hn::MaxOfLanes(d, max[v])));
  }
  return range;
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

// One stripe of x to q and to x - decoded. `draws` are read with kStochastic only.
template <bool kResidual, Rounding kRounding>
HWY_INLINE void QuantiseStripe(const float* gradient, const float* residual, Vector scale, const GridVectors& grid,
                               const float* draws, uint8_t* q, float* left, Squares& errors) {
  const Floats d;
  const Ints di;
  const hn::Rebind<uint8_t, Floats> d8;
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kLanes;
    const Vector x = LoadX<kResidual>(gradient + at, residual + at, scale);
    Vector t = hn::Add(hn::Mul(hn::Mul(hn::Sub(x, grid.base), grid.prescale), grid.per_unit), grid.zero);
    if constexpr (kRounding == Rounding::kStochastic) t = hn::Add(t, hn::LoadU(d, draws + at));
    t = hn::Min(hn::Max(t, grid.lowest), grid.highest);
    const auto level = kRounding == Rounding::kStochastic ? hn::ConvertTo(di, t) : hn::NearestInt(t);
    hn::StoreU(hn::DemoteTo(d8, level), d8, q + at);
    const Vector error = hn::Sub(x, grid.Value(hn::ConvertTo(d, level)));
    errors.Add(v, error);
    if (left != nullptr) hn::StoreU(error, d, left + at);
  }
}

// Quantises elements [begin, begin + n) of the input, n <= kChunk, that start `offset` elements into block `block`.
template <bool kResidual, Rounding kRounding>
HWY_INLINE void QuantiseChunk(const CodecInput& in, const GridVectors& grid, const DrawKey& draws, int64_t block,
                              int64_t offset, int64_t begin, int64_t n, uint8_t* q, Squares& errors, float* rest) {
  const Vector scale = hn::Set(Floats(), in.residual_scale);
  HWY_ALIGN float drawn[kRounding == Rounding::kStochastic ? kChunk : 1];
  if constexpr (kRounding == Rounding::kStochastic) {
    Draw(draws, static_cast<uint32_t>(block), static_cast<uint32_t>(offset / 64), (n + 63) / 64, drawn);
  }
  const float* const gradient = in.gradient + begin;
  const float* const residual = kResidual ? in.residual + begin : nullptr;
  float* const left = in.left == nullptr ? nullptr : in.left + begin;
  int64_t i = 0;
  for (; i + kStripe <= n; i += kStripe) {
    QuantiseStripe<kResidual, kRounding>(gradient + i, residual + i, scale, grid, drawn + i, q + i,
                                         left == nullptr ? nullptr : left + i, errors);
  }
  if (i == n) return;
  float g[kStripe] = {}, r[kStripe] = {};
  std::copy(gradient + i, gradient + n, g);
  if constexpr (kResidual) std::copy(residual + i, residual + n, r);
  Squares unused;
  QuantiseStripe<kResidual, kRounding>(g, r, scale, grid, drawn + i, q + i, rest, unused);
  std::fill(q + n, q + i + kStripe, uint8_t{0});
  if (left != nullptr) std::copy(rest, rest + (n - i), left + i);
}

template <bool kResidual, Rounding kRounding>
Encoded Quantise(const QuantiserSpec& spec, const CodecInput& in, const DrawKey& draws, uint8_t* code) {
  const Packing packing(spec.bits);
  HWY_ALIGN uint64_t words[kChunk / 8];
  auto* const q = reinterpret_cast<uint8_t*>(words);
  Encoded sums;
  for (int64_t begin = 0; begin < in.size; begin += spec.block) {
    const int64_t n = std::min(spec.block, in.size - begin);
    const Range range = RangeOf<kResidual>(in, begin, n);
    sums.squares += range.squares;
    if (!std::isfinite(range.squares)) {
      sums.finite = false;
      QuantiserGrid::WriteNaN(code);
      const int64_t bytes = (n + 7) / 8 * spec.bits;
      std::memset(code + QuantiserGrid::kBytes, 0, static_cast<size_t>(bytes));
      code += QuantiserGrid::kBytes + bytes;
      continue;
    }
    const auto grid = QuantiserGrid::Of(range.min, range.max, spec.bits, kRounding);
    grid.Write(code);
    code += QuantiserGrid::kBytes;
    const GridVectors vectors(grid);
    Squares errors;
    float rest[kStripe];
    for (int64_t offset = 0; offset < n; offset += kChunk) {
      const int64_t m = std::min(kChunk, n - offset), groups = (m + 7) / 8;
      QuantiseChunk<kResidual, kRounding>(in, vectors, draws, begin / spec.block, offset, begin + offset, m, q, errors,
                                          rest);
      Pack(packing, spec.bits, groups, words, code);
      code += groups * spec.bits;
    }
    sums.error_squares += errors.Sum(rest, n % kStripe);
  }
  return sums;
}

Encoded QuantiseLoop(const QuantiserSpec& spec, const CodecInput& in, const DrawKey& draws, uint8_t* code) {
  if (spec.rounding == Rounding::kNearest) {
    return in.residual == nullptr ? Quantise<false, Rounding::kNearest>(spec, in, draws, code)
                                  : Quantise<true, Rounding::kNearest>(spec, in, draws, code);
  }
  return in.residual == nullptr ? Quantise<false, Rounding::kStochastic>(spec, in, draws, code)
                                : Quantise<true, Rounding::kStochastic>(spec, in, draws, code);
}

template <bool kAdd>
HWY_INLINE void DequantiseStripe(const uint8_t* q, const GridVectors& grid, float* out) {
  const Floats d;
  const hn::Rebind<uint8_t, Floats> d8;
  for (int v = 0; v < kVectors; ++v) {
    float* const to = out + v * kLanes;
    const Vector value = grid.Value(hn::ConvertTo(d, hn::PromoteTo(Ints(), hn::LoadU(d8, q + v * kLanes))));
    hn::StoreU(kAdd ? hn::Add(hn::LoadU(d, to), value) : value, d, to);
  }
}

template <bool kAdd>
void Dequantise(const QuantiserSpec& spec, const uint8_t* code, int64_t size, float* out) {
  const Packing packing(spec.bits);
  HWY_ALIGN uint64_t words[kChunk / 8 + 1] = {};
  const auto* const q = reinterpret_cast<const uint8_t*>(words);
  for (int64_t begin = 0; begin < size; begin += spec.block) {
    const GridVectors grid(QuantiserGrid::Read(code));
    code += QuantiserGrid::kBytes;
    const int64_t end = std::min(begin + spec.block, size);
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t n = std::min(kChunk, end - at), groups = (n + 7) / 8;
      Unpack(packing, spec.bits, groups, code, words);
      code += groups * spec.bits;
      int64_t i = 0;
      for (; i + kStripe <= n; i += kStripe) DequantiseStripe<kAdd>(q + i, grid, out + at + i);
      if (i == n) continue;
      float rest[kStripe] = {};
      if (kAdd) std::copy(out + at + i, out + at + n, rest);
      DequantiseStripe<kAdd>(q + i, grid, rest);
      std::copy(rest, rest + (n - i), out + at + i);
    }
  }
}

void DequantiseLoop(const QuantiserSpec& spec, const uint8_t* code, int64_t size, Codec::Into into, float* out) {
  if (into == Codec::Into::kAdd) {
    Dequantise<true>(spec, code, size, out);
  } else {
    Dequantise<false>(spec, code, size, out);
  }
}

void DrawLoop(const DrawKey& draws, uint32_t block, uint32_t first, int64_t chunks, float* out) {
  Draw(draws, block, first, chunks, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {
HWY_EXPORT(QuantiseLoop);
HWY_EXPORT(DequantiseLoop);
HWY_EXPORT(DrawLoop);

Encoded QuantiseRun(const QuantiserSpec& spec, const CodecInput& input, const DrawKey& draws, uint8_t* code) {
  return HWY_DYNAMIC_DISPATCH(QuantiseLoop)(spec, input, draws, code);
}
void DequantiseRun(const QuantiserSpec& spec, const uint8_t* code, int64_t size, Codec::Into into, float* out) {
  HWY_DYNAMIC_DISPATCH(DequantiseLoop)(spec, code, size, into, out);
}
void DrawRun(const DrawKey& draws, uint32_t block, uint32_t first, int64_t chunks, float* out) {
  HWY_DYNAMIC_DISPATCH(DrawLoop)(draws, block, first, chunks, out);
}
}  // namespace shoal
#endif
