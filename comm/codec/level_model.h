// How likely levels are: the model by which entropy-coded quantisation (ecsq.cc) spells them.
//
// Levels come in groups of 32. A group's class is the logarithm of the sum of its magnitudes, in half octaves, and says
// how wide its levels are spread; within a class they are taken for a generalised normal distribution, p(t) ~
// exp(-|t|^1.75), which is between the normal one and Laplace's. With exponents of 1.4 and 2, on either side, gradients
// of a GPT and a ResNet cost at most 0.1 bits an element more than with tables of their own. Of classes whose levels
// are spread wide, the lowest bits are as good as random and travel as they are, so that few tables serve all. The
// tables are a part of the format: they are made of sums, products, quotients and square roots alone, which give the
// same on every machine.
#pragma once

#include <array>
#include <cstdint>

#include "comm/codec/rans.h"

namespace shoal {

constexpr int kLevelGroup = 32;
constexpr int kLevelClasses = 42;  // 0: all levels are zero; c: their magnitudes' sum is about 2^((c - 1) / 2)
constexpr int kLevelBits = 11;     // frequencies are out of 2^11; no more than kMostRansBits
constexpr int kMostLevel = 32000;  // of a magnitude
constexpr int kReach = 31;         // a table's own symbols are at most those of -31..31, and one for what is beyond
constexpr int kBeyond = 63;        // that one
constexpr int kBeyondBits = 8;     // a level beyond travels as two halves of so many bits
constexpr int kCostUnit = 256;     // costs are in 1/256 bit

struct LevelTable {
  int reach = 0;                                // its own symbols are -reach..reach, as level + kReach
  std::array<RansSymbol, kBeyond + 1> symbols;  // [level + kReach]
  std::array<uint16_t, kReach + 2> cost;        // [min(|level|, kReach + 1)]
  std::array<uint32_t, 1 << kLevelBits> found;  // [low bits of a state]: symbol << 22 | offset << 11 | frequency
};

struct LevelClass {
  const LevelTable* table = nullptr;  // null for class 0
  int shift = 0;                      // lowest bits that travel as they are
};

// Of the sum of a group's magnitudes.
inline int LevelClassOf(uint32_t sum) {
  if (sum == 0) return 0;
  const int log = std::bit_width(sum) - 1;
  const uint64_t mantissa = uint64_t{sum} << (32 - log);                  // in [2^32, 2^33)
  constexpr uint64_t kQuarter = 5107605667, kThreeQuarters = 7223245205;  // 2^32.25, 2^32.75
  return 1 + 2 * log + (mantissa >= kQuarter ? 1 : 0) + (mantissa >= kThreeQuarters ? 1 : 0);
}

// [kLevelClasses]
const LevelClass* LevelClasses();

// A level without its `shift` lowest bits, to the nearest, and those bits.
inline int32_t HighPart(int32_t level, int shift) { return shift == 0 ? level : (level + (1 << (shift - 1))) >> shift; }
inline uint32_t LowPart(int32_t level, int shift) {
  return static_cast<uint32_t>(shift == 0 ? 0 : (level + (1 << (shift - 1))) & ((1 << shift) - 1));
}
inline int32_t WholeLevel(int32_t high, uint32_t low, int shift) {
  return shift == 0 ? high : (high << shift) + static_cast<int32_t>(low) - (1 << (shift - 1));
}

}  // namespace shoal
