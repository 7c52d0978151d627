#include "comm/codec/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

constexpr int kLanes = 16;

// fn(element, lane) for all elements, lane = element % 16.
template <class F>
HWY_INLINE void ForLanes(int64_t n, F fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) fn(i + l, l);
  }
  for (int l = 0; i < n; ++i, ++l) fn(i, l);
}
HWY_INLINE double SumOf(const double* lanes) {
  double sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}
// The square of a float is exact in double, so that fusing it with the sum changes no bits.
HWY_INLINE double AddSquare(double sum, float x) {
  const auto wide = static_cast<double>(x);
#if HWY_NATIVE_FMA
  return __builtin_fma(wide, wide, sum);
#else
  return sum + wide * wide;
#endif
}

void LoadLoop(const float* __restrict gradient, const float* __restrict residual, float scale, int64_t n,
              float* __restrict x, Stretch& stretch) {
  double squares[kLanes] = {};
  float min[kLanes], max[kLanes];
  uint32_t infinite[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) min[l] = max[l] = n > 0 ? gradient[0] : 0;
  const bool with = residual != nullptr;
  if (with && n > 0) {
    for (int l = 0; l < kLanes; ++l) min[l] = max[l] = gradient[0] + scale * residual[0];
  }
  const auto take = [&](int64_t i, int l, float value) HWY_ATTR {
    x[i] = value;
    squares[l] = AddSquare(squares[l], value);
    min[l] = value < min[l] ? value : min[l];
    max[l] = value > max[l] ? value : max[l];
    infinite[l] |= (std::bit_cast<uint32_t>(value) & 0x7f800000U) == 0x7f800000U ? 1U : 0U;
  };
  if (with) {
    ForLanes(n, [&](int64_t i, int l) HWY_ATTR { take(i, l, gradient[i] + scale * residual[i]); });
  } else {
    ForLanes(n, [&](int64_t i, int l) HWY_ATTR { take(i, l, gradient[i]); });
  }
  stretch = {SumOf(squares), min[0], max[0], infinite[0] == 0};
  for (int l = 1; l < kLanes; ++l) {
    stretch.min = std::min(stretch.min, min[l]);
    stretch.max = std::max(stretch.max, max[l]);
    stretch.finite = stretch.finite && infinite[l] == 0;
  }
}

// Where x stands on the grid, and it and what is added to it to round it down.
HWY_INLINE float Position(const QuantiserGrid& g, float x) { return (x - g.base) * g.prescale * g.per_unit + g.zero; }

template <class Draw>
HWY_INLINE double Quantise(const QuantiserGrid& grid, int64_t n, float* __restrict x, uint8_t* __restrict q,
                           Draw draw) {
  const QuantiserGrid g = grid;
  double squares[kLanes] = {};
  ForLanes(n, [&](int64_t i, int l) HWY_ATTR {
    const float at = Position(g, x[i]) + draw(i);
    const float inside = at < g.lowest ? g.lowest : at > g.highest ? g.highest : at;
    const auto level = static_cast<int32_t>(inside);
    q[i] = static_cast<uint8_t>(level);
    x[i] = x[i] - ((static_cast<float>(level) - g.zero) * g.unit + g.base);
    squares[l] = AddSquare(squares[l], x[i]);
  });
  return SumOf(squares);
}
double QuantiseNearestLoop(const QuantiserGrid& grid, int64_t n, float* __restrict x, uint8_t* __restrict q) {
  return Quantise(grid, n, x, q, [](int64_t) HWY_ATTR { return 0.5F; });
}
double QuantiseByDrawsLoop(const QuantiserGrid& grid, int64_t n, float* __restrict x, const float* __restrict draws,
                           uint8_t* __restrict q) {
  return Quantise(grid, n, x, q, [draws](int64_t i) HWY_ATTR { return draws[i]; });
}

void DequantiseLoop(const QuantiserGrid& grid, const uint8_t* __restrict q, int64_t n, bool add,
                    float* __restrict out) {
  const QuantiserGrid g = grid;
  if (add) {
    for (int64_t i = 0; i < n; ++i) out[i] = out[i] + ((static_cast<float>(q[i]) - g.zero) * g.unit + g.base);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<float>(q[i]) - g.zero) * g.unit + g.base;
  }
}

// In units, of which there are at most 255: float sums of a block are good to a few parts in a million.
double GridErrorLoop(const QuantiserGrid& grid, bool nearest, const float* __restrict x, int64_t n) {
  const QuantiserGrid g = grid;
  float sums[kLanes] = {};
  if (nearest) {
    ForLanes(n, [&](int64_t i, int l) HWY_ATTR {
      const float at = Position(g, x[i]), off = at - static_cast<float>(static_cast<int32_t>(at + 0.5F));
      sums[l] += off * off;
    });
  } else {
    ForLanes(n, [&](int64_t i, int l) HWY_ATTR {
      const float at = Position(g, x[i]), above = at - static_cast<float>(static_cast<int32_t>(at));
      sums[l] += above * (1 - above);
    });
  }
  double sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += static_cast<double>(sums[l]);
  return sum * static_cast<double>(g.unit) * static_cast<double>(g.unit);
}

// Three steps bring 8 fields of a word together: fields of width w, one in every 2^s bits, become pairs of width 2 w in
// every 2^(s + 1) bits.
struct Packing {
  uint64_t low[3], high[3];
  int shift[3];
  HWY_INLINE explicit Packing(int bits) {
    for (int s = 0; s < 3; ++s) {
      const int apart = 8 << s, width = bits << s;
      const uint64_t field = (uint64_t{1} << width) - 1;
      low[s] = 0;
      for (int at = 0; at < 64; at += 2 * apart) low[s] |= field << at;
      high[s] = low[s] << apart;
      shift[s] = apart - width;
    }
  }
};
HWY_INLINE uint64_t Word(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

void PackLoop(int bits, const uint8_t* __restrict q, int64_t n, uint8_t* __restrict code) {
  if (bits == 8) {
    std::memcpy(code, q, static_cast<size_t>(n));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) code[i] = static_cast<uint8_t>(q[2 * i] | q[2 * i + 1] << 4);
    return;
  }
  const Packing p(bits);
  for (int64_t i = 0; i < n; i += 8, code += bits) {
    uint64_t w = Word(q + i);
    w = (w & p.low[0]) | (w & p.high[0]) >> p.shift[0];
    w = (w & p.low[1]) | (w & p.high[1]) >> p.shift[1];
    w = (w & p.low[2]) | (w & p.high[2]) >> p.shift[2];
    std::memcpy(code, &w, static_cast<size_t>(bits));
  }
}

void UnpackLoop(int bits, const uint8_t* __restrict code, int64_t n, uint8_t* __restrict q) {
  if (bits == 8) {
    std::memcpy(q, code, static_cast<size_t>(n));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      q[2 * i] = static_cast<uint8_t>(code[i] & 15U);
      q[2 * i + 1] = static_cast<uint8_t>(code[i] >> 4);
    }
    return;
  }
  const Packing p(bits);
  for (int64_t i = 0; i < n; i += 8, code += bits) {
    uint64_t w = 0;
    std::memcpy(&w, code, static_cast<size_t>(bits));
    w = (w & p.low[2]) | (w << p.shift[2] & p.high[2]);
    w = (w & p.low[1]) | (w << p.shift[1] & p.high[1]);
    w = (w & p.low[0]) | (w << p.shift[0] & p.high[0]);
    std::memcpy(q + i, &w, sizeof(w));
  }
}

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
  double squares[kLanes] = {};
  ForLanes(n, [&](int64_t i, int l) HWY_ATTR {
    const auto u = std::bit_cast<uint32_t>(x[i]);
    uint32_t rounded = (u + 0x7fffU + (u >> 16 & 1U)) >> 16;
    rounded = (rounded & 0x7fffU) == 0x7f80U && (u & 0x7fffffffU) < 0x7f800000U ? rounded - 1 : rounded;
    rounded = (u & 0x7fffffffU) > 0x7f800000U ? u >> 16 | 0x40U : rounded;
    code[i] = static_cast<uint16_t>(rounded);
    x[i] = x[i] - std::bit_cast<float>(rounded << 16);
    squares[l] = AddSquare(squares[l], x[i]);
  });
  return SumOf(squares);
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
HWY_EXPORT(QuantiseNearestLoop);
HWY_EXPORT(QuantiseByDrawsLoop);
HWY_EXPORT(DequantiseLoop);
HWY_EXPORT(GridErrorLoop);
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
double QuantiseRun(const QuantiserGrid& grid, int64_t n, float* x, const float* draws, uint8_t* q) {
  return draws == nullptr ? HWY_DYNAMIC_DISPATCH(QuantiseNearestLoop)(grid, n, x, q)
                          : HWY_DYNAMIC_DISPATCH(QuantiseByDrawsLoop)(grid, n, x, draws, q);
}
void DequantiseRun(const QuantiserGrid& grid, const uint8_t* q, int64_t n, Codec::Into into, float* out) {
  HWY_DYNAMIC_DISPATCH(DequantiseLoop)(grid, q, n, into == Codec::Into::kAdd, out);
}
double GridErrorRun(const QuantiserGrid& grid, Rounding rounding, const float* x, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(GridErrorLoop)(grid, rounding == Rounding::kNearest, x, n);
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
