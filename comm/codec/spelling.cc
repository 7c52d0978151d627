#include "comm/codec/spelling.h"

#include <algorithm>
#include <array>
#include <cstdlib>

// Processors with AVX-512 run the loops for AVX2: which of them there are, tests run everywhere.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/spelling.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef SHOAL_SPELLING_ONCE
#define SHOAL_SPELLING_ONCE
namespace shoal {
namespace {

constexpr uint32_t kSymbolField = (uint32_t{1} << kLevelBits) - 1;
constexpr uint32_t kHalfOfLevel = (uint32_t{1} << kBeyondBits) - 1;
static_assert(kLevelBits <= kMostRansBits);

// [mask of 8 lanes]
using LanesOfMasks = std::array<std::array<uint8_t, 8>, 256>;
// The lanes in the mask, in order, then whichever.
constexpr LanesOfMasks kChosen = [] {
  LanesOfMasks chosen = {};
  for (size_t mask = 0; mask < 256; ++mask) {
    for (uint8_t lane = 0, n = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1) != 0) chosen[mask][n++] = lane;
    }
  }
  return chosen;
}();
// Of each lane how many before it are in the mask.
constexpr LanesOfMasks kPlaces = [] {
  LanesOfMasks places = {};
  for (size_t mask = 0; mask < 256; ++mask) {
    for (uint8_t lane = 0, n = 0; lane < 8; n += mask >> lane++ & 1) places[mask][lane] = n;
  }
  return places;
}();

inline void SpellBeyond(int level, uint32_t& state, RansWriter& words) {
  const auto whole = static_cast<uint32_t>(static_cast<uint16_t>(level));
  words.PutBits(state, whole & kHalfOfLevel, kBeyondBits);
  words.PutBits(state, whole >> kBeyondBits, kBeyondBits);
}
inline int16_t ReadBeyond(uint32_t& state, RansReader& words) {
  const uint32_t high = words.TakeBits(state, kBeyondBits);
  return static_cast<int16_t>(high << kBeyondBits | words.TakeBits(state, kBeyondBits));
}

}  // namespace
}  // namespace shoal
#endif

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2

namespace hn = hwy::HWY_NAMESPACE;

using Words = hn::ScalableTag<uint32_t>;
using Ints = hn::RebindToSigned<Words>;
using Halves = hn::Rebind<uint16_t, Words>;
using Levels = hn::Rebind<int16_t, Words>;
using Word = hn::Vec<Words>;
using Int = hn::Vec<Ints>;
using Mask = hn::Mask<Words>;
constexpr int kWidth = static_cast<int>(hn::MaxLanes(Words())), kVectors = kRansStates / kWidth;

HWY_INLINE Word AsWords(Int v) { return hn::BitCast(Words(), v); }
HWY_INLINE Int AsInts(Word v) { return hn::BitCast(Ints(), v); }
// Of values below 2^31.
HWY_INLINE Mask Below(Word a, Word b) { return hn::RebindMask(Words(), hn::Lt(AsInts(a), AsInts(b))); }

HWY_INLINE Word HighProduct(Word a, Word b) {
  const hn::Repartition<uint64_t, Words> d64;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(Words(), hn::ShiftRight<32>(hn::BitCast(d64, a))),
                               hn::BitCast(Words(), hn::ShiftRight<32>(hn::BitCast(d64, b))));
  return hn::OddEven(hn::BitCast(Words(), odd), hn::BitCast(Words(), hn::ShiftRight<32>(even)));
}

// Vector v holds elements [v kWidth, (v + 1) kWidth), the last in its first lane: so words come out in the order of
// writing.
HWY_INLINE Word LoadReversed(const uint32_t* at) { return hn::Reverse(Words(), hn::LoadU(Words(), at)); }

// Highway's own Compress copies its table to the stack with every call (1.0.3, GCC 12).
HWY_INLINE Word Permute(Word v, Mask mask, const LanesOfMasks& lanes) {
  const auto bits = static_cast<size_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask.raw)));
  const auto of = hn::PromoteTo(Words(), hn::LoadU(hn::Rebind<uint8_t, Words>(), lanes[bits].data()));
  return hn::TableLookupLanes(v, hn::IndicesFromVec(Words(), of));
}

// The lowest halves of states in `passing`, and what is left of those.
HWY_INLINE Word Pass(Word state, Mask passing, uint16_t*& at) {
  const Word low = hn::And(state, hn::Set(Words(), 0xffff));
  hn::StoreU(hn::DemoteTo(Halves(), AsInts(Permute(low, passing, kChosen))), Halves(), at);
  at += hn::CountTrue(Words(), passing);
  return hn::IfThenElse(passing, hn::ShiftRight<16>(state), state);
}

HWY_INLINE Word PutSymbols(Word state, Int symbol, const RansSymbol* symbols, uint16_t*& at) {
  const Words d;
  const hn::Half<Ints> half;
  const hn::Repartition<int64_t, Words> d64;
  const auto* const table = reinterpret_cast<const int64_t*>(symbols);
  const auto gather = [&](auto which)
                          HWY_ATTR { return hn::BitCast(d, hn::GatherIndex(d64, table, hn::PromoteTo(d64, which))); };
  const Word low = gather(hn::LowerHalf(half, symbol)), high = gather(hn::UpperHalf(half, symbol));
  const Word reciprocal = hn::ConcatEven(d, high, low), rest = hn::ConcatOdd(d, high, low);
  const Word frequency = hn::And(rest, hn::Set(d, kSymbolField));
  const Word limit = hn::ShiftLeft<31 - kLevelBits>(frequency);
  state = Pass(state, hn::Not(Below(state, limit)), at);
  const Word quotient = hn::Shr(HighProduct(state, reciprocal), hn::ShiftRight<2 * kMostRansBits + 1>(rest));
  const Word bias = hn::And(hn::ShiftRight<kMostRansBits>(rest), hn::Set(d, (uint32_t{2} << kMostRansBits) - 1));
  const Word complement = hn::Sub(hn::Set(d, uint32_t{1} << kLevelBits), frequency);
  return hn::Add(hn::Add(state, bias), hn::Mul(quotient, complement));
}

void SpellLoop(const int16_t* levels, const uint8_t* classes, int64_t groups, uint32_t* states, uint16_t*& out) {
  const Words d;
  const Ints di;
  uint16_t* at = out;
  Word state[kVectors];
  for (int v = 0; v < kVectors; ++v) state[v] = LoadReversed(states + v * kWidth);
  for (int64_t g = groups - 1; g >= 0; --g) {
    const LevelClass of = LevelClasses()[classes[g]];
    if (of.table == nullptr) continue;
    const int16_t* const group = levels + g * kLevelGroup;
    const Int reach = hn::Set(di, of.table->reach);
    const Int half = hn::Set(di, of.shift == 0 ? 0 : 1 << (of.shift - 1));
    Int symbol[kVectors];
    Word low[kVectors];
    Mask beyond[kVectors];
    bool any_beyond = false;
    for (int v = 0; v < kVectors; ++v) {
      const Int whole =
          hn::Add(hn::PromoteTo(di, hn::Reverse(Levels(), hn::LoadU(Levels(), group + v * kWidth))), half);
      const Int high = hn::ShiftRightSame(whole, of.shift);
      const auto over = hn::Gt(hn::Abs(high), reach);
      symbol[v] = hn::IfThenElse(over, hn::Set(di, kBeyond), hn::Add(high, hn::Set(di, kReach)));
      low[v] = hn::And(AsWords(whole), hn::Set(d, (uint32_t{1} << of.shift) - 1));
      beyond[v] = hn::RebindMask(d, over);
      any_beyond = any_beyond || !hn::AllFalse(di, over);
    }
    if (of.shift > 0) {
      const Word limit = hn::Set(d, uint32_t{1} << (31 - of.shift));
      for (int v = kVectors - 1; v >= 0; --v) {
        state[v] = Pass(state[v], hn::AndNot(beyond[v], hn::Not(Below(state[v], limit))), at);
        const Word longer = hn::Or(hn::ShiftLeftSame(state[v], of.shift), low[v]);
        state[v] = hn::IfThenElse(beyond[v], state[v], longer);
      }
    }
    if (any_beyond) [[unlikely]] {
      HWY_ALIGN uint32_t of_element[kRansStates];
      RansWriter words{at};
      for (int v = 0; v < kVectors; ++v) hn::Store(hn::Reverse(d, state[v]), d, of_element + v * kWidth);
      for (int i = kLevelGroup - 1; i >= 0; --i) {
        if (std::abs(HighPart(group[i], of.shift)) > of.table->reach) SpellBeyond(group[i], of_element[i], words);
      }
      for (int v = 0; v < kVectors; ++v) state[v] = LoadReversed(of_element + v * kWidth);
      at = words.at;
    }
    for (int v = kVectors - 1; v >= 0; --v) state[v] = PutSymbols(state[v], symbol[v], of.table->symbols.data(), at);
  }
  for (int v = 0; v < kVectors; ++v) hn::StoreU(hn::Reverse(d, state[v]), d, states + v * kWidth);
  out = at;
}

// The next words, in those lanes that are `wanting`, in order.
HWY_INLINE Word NextWords(Mask wanting, const uint8_t*& at) {
  const Word words = hn::PromoteTo(Words(), hn::LoadU(Halves(), reinterpret_cast<const uint16_t*>(at)));
  at += 2 * hn::CountTrue(Words(), wanting);
  return hn::IfThenElseZero(wanting, Permute(words, wanting, kPlaces));
}
HWY_INLINE Word Refill(Word state, Mask among, const uint8_t*& at) {
  const Mask wanting = hn::And(among, Below(state, hn::Set(Words(), kRansLeast)));
  const Word words = NextWords(wanting, at);
  return hn::IfThenElse(wanting, hn::Or(hn::ShiftLeft<16>(state), words), state);
}

void ReadLoop(const uint8_t*& in, const uint8_t* classes, int64_t groups, uint32_t* states, int16_t* levels) {
  const Words d;
  const Ints di;
  const uint8_t* at = in;
  const Mask all = hn::FirstN(d, static_cast<size_t>(kWidth));
  const Word field = hn::Set(d, kSymbolField);
  Word state[kVectors];
  for (int v = 0; v < kVectors; ++v) state[v] = hn::LoadU(d, states + v * kWidth);
  for (int64_t g = 0; g < groups; ++g, levels += kLevelGroup) {
    const LevelClass of = LevelClasses()[classes[g]];
    if (of.table == nullptr) {
      std::fill_n(levels, kLevelGroup, int16_t{0});
      continue;
    }
    Word symbol[kVectors];
    bool any_beyond = false;
    for (int v = 0; v < kVectors; ++v) {
      const Word entry = hn::GatherIndex(d, of.table->found.data(), AsInts(hn::And(state[v], field)));
      symbol[v] = hn::ShiftRight<2 * kLevelBits>(entry);
      const Word offset = hn::And(hn::ShiftRight<kLevelBits>(entry), field);
      state[v] = hn::Add(hn::Mul(hn::And(entry, field), hn::ShiftRight<kLevelBits>(state[v])), offset);
      state[v] = Refill(state[v], all, at);
      any_beyond = any_beyond || !hn::AllFalse(d, hn::Eq(symbol[v], hn::Set(d, kBeyond)));
    }
    HWY_ALIGN uint32_t of_element[kRansStates], symbols[kRansStates];
    if (any_beyond) [[unlikely]] {
      RansReader words{at};
      for (int v = 0; v < kVectors; ++v) {
        hn::Store(state[v], d, of_element + v * kWidth);
        hn::Store(symbol[v], d, symbols + v * kWidth);
      }
      for (int i = 0; i < kLevelGroup; ++i) {
        if (symbols[i] == kBeyond) levels[i] = ReadBeyond(of_element[i], words);
      }
      for (int v = 0; v < kVectors; ++v) state[v] = hn::Load(d, of_element + v * kWidth);
      at = words.at;
    }
    const Word lowest = hn::Set(d, (uint32_t{1} << of.shift) - 1);
    const Int half = hn::Set(di, of.shift == 0 ? 0 : 1 << (of.shift - 1));
    for (int v = 0; v < kVectors; ++v) {
      const Mask beyond = hn::Eq(symbol[v], hn::Set(d, kBeyond));
      Int level = hn::Sub(AsInts(symbol[v]), hn::Set(di, kReach));
      if (of.shift > 0) {
        const Int low = AsInts(hn::And(state[v], lowest));
        const Word shorter = hn::ShiftRightSame(state[v], of.shift);
        state[v] = Refill(hn::IfThenElse(beyond, state[v], shorter), hn::Not(beyond), at);
        level = hn::Sub(hn::Add(hn::ShiftLeftSame(level, of.shift), low), half);
      }
      if (any_beyond) {
        const Int known = hn::PromoteTo(di, hn::LoadU(Levels(), levels + v * kWidth));
        level = hn::IfThenElse(hn::RebindMask(di, beyond), known, level);
      }
      hn::StoreU(hn::DemoteTo(Levels(), level), Levels(), levels + v * kWidth);
    }
  }
  for (int v = 0; v < kVectors; ++v) hn::StoreU(state[v], d, states + v * kWidth);
  in = at;
}

#else

void SpellLoop(const int16_t* levels, const uint8_t* classes, int64_t groups, uint32_t* states, uint16_t*& out) {
  RansWriter words{out};
  for (int64_t g = groups - 1; g >= 0; --g)
    SpellGroup(levels + g * kLevelGroup, kLevelGroup, LevelClasses()[classes[g]], states, words);
  out = words.at;
}
void ReadLoop(const uint8_t*& in, const uint8_t* classes, int64_t groups, uint32_t* states, int16_t* levels) {
  RansReader words{in};
  for (int64_t g = 0; g < groups; ++g)
    ReadGroup(words, kLevelGroup, LevelClasses()[classes[g]], states, levels + g * kLevelGroup);
  in = words.at;
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(SpellLoop);
HWY_EXPORT(ReadLoop);

void SpellGroups(const int16_t* levels, const uint8_t* classes, int64_t groups, uint32_t* states, RansWriter& words) {
  HWY_DYNAMIC_DISPATCH(SpellLoop)(levels, classes, groups, states, words.at);
}
void ReadGroups(RansReader& words, const uint8_t* classes, int64_t groups, uint32_t* states, int16_t* levels) {
  HWY_DYNAMIC_DISPATCH(ReadLoop)(words.at, classes, groups, states, levels);
}

void SpellGroup(const int16_t* levels, int count, const LevelClass& of, uint32_t* states, RansWriter& words) {
  if (of.table == nullptr) return;
  const auto is_beyond = [&](int i) { return std::abs(HighPart(levels[i], of.shift)) > of.table->reach; };
  for (int i = count - 1; i >= 0 && of.shift > 0; --i) {
    if (!is_beyond(i)) words.PutBits(states[i], LowPart(levels[i], of.shift), of.shift);
  }
  for (int i = count - 1; i >= 0; --i) {
    if (is_beyond(i)) SpellBeyond(levels[i], states[i], words);
  }
  for (int i = count - 1; i >= 0; --i) {
    const int symbol = is_beyond(i) ? kBeyond : HighPart(levels[i], of.shift) + kReach;
    words.Put(states[i], of.table->symbols[symbol], kLevelBits);
  }
}

void ReadGroup(RansReader& words, int count, const LevelClass& of, uint32_t* states, int16_t* levels) {
  if (of.table == nullptr) {
    std::fill_n(levels, count, int16_t{0});
    return;
  }
  int symbols[kLevelGroup];
  for (int i = 0; i < count; ++i) {
    const uint32_t entry = of.table->found[states[i] & kSymbolField];
    symbols[i] = static_cast<int>(entry >> 2 * kLevelBits);
    words.Take(states[i], entry & kSymbolField, entry >> kLevelBits & kSymbolField, kLevelBits);
  }
  for (int i = 0; i < count; ++i) {
    if (symbols[i] == kBeyond) levels[i] = ReadBeyond(states[i], words);
  }
  for (int i = 0; i < count; ++i) {
    if (symbols[i] == kBeyond) continue;
    const uint32_t low = of.shift > 0 ? words.TakeBits(states[i], of.shift) : 0;
    levels[i] = static_cast<int16_t>(WholeLevel(symbols[i] - kReach, low, of.shift));
  }
}

}  // namespace shoal
#endif
