// Asymmetric numeral systems, range variant (rANS: Duda, arXiv 1311.2540), on states of 31 bits that pass words of 16.
//
// A symbol takes the range [start, start + frequency) out of 2^bits. Encoding runs from the last symbol to the first;
// decoding reads the words in the reverse of the order they were written in. Several states that take turns share one
// run of words: what one state waits for, the others use. Pure integer arithmetic: equal bytes on all machines.
#pragma once

#include <bit>
#include <cstdint>

namespace shoal {

constexpr uint32_t kRansLeast = uint32_t{1} << 15;  // of a state between symbols; the most is 2^31 - 1
constexpr int kMostRansBits = 11;                   // that frequencies are out of, as a power of two

// One symbol, with a division by its frequency made ready as a multiplication (exact for states below 2^31).
struct RansSymbol {
  uint32_t reciprocal = 0;  // ceil(2^(31 + shift) / frequency)
  uint32_t rest = 0;        // shift << 23 | bias << 11 | frequency

  // 1 <= frequency < 2^bits.
  static RansSymbol Of(uint32_t start, uint32_t frequency, int bits) {
    // Of frequency 1 the quotient is taken for one less than the state, and the bias brings the rest.
    if (frequency == 1) return {~uint32_t{0}, (start + (uint32_t{1} << bits) - 1) << kMostRansBits | 1};
    const int log = std::bit_width(frequency - 1);
    return {static_cast<uint32_t>(((uint64_t{1} << (log + 31)) + frequency - 1) / frequency),
            static_cast<uint32_t>(log - 1) << (2 * kMostRansBits + 1) | start << kMostRansBits | frequency};
  }
  uint32_t frequency() const { return rest & ((uint32_t{1} << kMostRansBits) - 1); }
  uint32_t bias() const { return rest >> kMostRansBits & ((uint32_t{2} << kMostRansBits) - 1); }
  uint32_t shift() const { return rest >> (2 * kMostRansBits + 1); }
};

// Where words go; there is room for one more than are passed.
struct RansWriter {
  uint16_t* at;  // the next word

  void Put(uint32_t& state, const RansSymbol& symbol, int bits) {
    const uint32_t frequency = symbol.frequency();
    Pass(state, frequency << (31 - bits));
    const auto high = static_cast<uint32_t>(uint64_t{state} * symbol.reciprocal >> 32);
    state += symbol.bias() + (high >> symbol.shift()) * ((uint32_t{1} << bits) - frequency);
  }
  // `count` <= 15 bits that are as likely as any others.
  void PutBits(uint32_t& state, uint32_t bits, int count) {
    Pass(state, uint32_t{1} << (31 - count));
    state = state << count | bits;
  }

 private:
  // A word is written whether it is passed or not: which is as random as the code, and no branch would be foreseen.
  void Pass(uint32_t& state, uint32_t limit) {
    const int passed = state >= limit ? 1 : 0;
    *at = static_cast<uint16_t>(state);
    at += passed;
    state >>= 16 * passed;
  }
};

struct RansReader {
  const uint8_t* at;  // the next word, of two bytes

  // After a symbol was found in the low bits of a state: what it leaves of it, and a word where that is little.
  void Take(uint32_t& state, uint32_t frequency, uint32_t offset, int bits) {
    state = frequency * (state >> bits) + offset;
    Refill(state);
  }
  uint32_t TakeBits(uint32_t& state, int count) {
    const uint32_t bits = state & ((uint32_t{1} << count) - 1);
    state >>= count;
    Refill(state);
    return bits;
  }

 private:
  void Refill(uint32_t& state) {
    // Read whether it is wanted or not, as in RansWriter: a code ends with bytes to spare.
    const uint32_t word = static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8;
    const uint32_t wanted = state < kRansLeast ? 1 : 0;
    state = state << 16 * wanted | (word & (0 - wanted));
    at += 2 * wanted;
  }
};

}  // namespace shoal
