// Asymmetric numeral systems, range variant (rANS: Duda, arXiv 1311.2540), on states of 31 bits that pass words of 16.
//
// A symbol takes the range [start, start + frequency) out of 2^bits. Encoding runs from the last symbol to the first
// and writes words from the end of a buffer to its front; decoding reads them forward. Several states that take turns
// share one run of words: what one state waits for, the others use. Pure integer arithmetic: equal bytes on all
// machines.
#pragma once

#include <bit>
#include <cstdint>

namespace shoal {

constexpr uint32_t kRansLeast = uint32_t{1} << 15;  // of a state between symbols; the most is 2^31 - 1

// One symbol, with a division by its frequency made ready as a multiplication (exact for states below 2^31).
struct RansSymbol {
  uint32_t limit = 0;       // a state from here on passes a word first
  uint32_t reciprocal = 0;  // ceil(2^(31 + shift) / frequency)
  uint32_t bias = 0;
  uint16_t complement = 0;  // 2^bits - frequency
  uint16_t shift = 0;

  // 1 <= frequency < 2^bits, bits <= 15.
  static RansSymbol Of(uint32_t start, uint32_t frequency, int bits) {
    RansSymbol s;
    s.limit = frequency << (31 - bits);
    s.complement = static_cast<uint16_t>((uint32_t{1} << bits) - frequency);
    if (frequency == 1) {
      // The quotient is taken for one less than the state, and the bias brings the rest.
      s.reciprocal = ~uint32_t{0};
      s.bias = start + (uint32_t{1} << bits) - 1;
      return s;
    }
    const int log = std::bit_width(frequency - 1);
    s.reciprocal = static_cast<uint32_t>(((uint64_t{1} << (log + 31)) + frequency - 1) / frequency);
    s.shift = static_cast<uint16_t>(log - 1);
    s.bias = start;
    return s;
  }
};

// Where words go, the last first; there is room for one more than are passed.
struct RansWriter {
  uint16_t* at;  // the word written last

  void Put(uint32_t& state, const RansSymbol& symbol) {
    Pass(state, symbol.limit);
    const auto high = static_cast<uint32_t>(uint64_t{state} * symbol.reciprocal >> 32);
    state += symbol.bias + (high >> symbol.shift) * symbol.complement;
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
    at[-1] = static_cast<uint16_t>(state);
    at -= passed;
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
