// Counter-based random numbers (Philox4x32-10, Salmon et al., SC'11): a value is a pure function of what it is for,
// never of rank, call order or address. So dropout, initial weights and stochastic rounding are equal under every
// layout, replay and resume.
#pragma once

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace shoal {

enum class RngPurpose : uint32_t {
  kInit = 1,
  kDropout = 2,
  kStochasticRounding = 3,
  kSample = 4,
  kShuffle = 5,
  kTest = 6,
  kData = 7,
  kAugment = 8,
  kCodec = 9
};

// What a stream of random numbers is for.
struct RngKey {
  uint64_t seed = 0;  // of the run
  RngPurpose purpose = RngPurpose::kTest;
  uint64_t name = 0;  // NameHash of the parameter's or layer's global name
  uint32_t pass = 0;  // which application of a shared layer (Repeat), or the step for stochastic rounding
};

// A stable 64-bit hash (FNV-1a, then mixed); equal on every platform and release.
uint64_t NameHash(absl::string_view name);

class Rng {
 public:
  explicit Rng(const RngKey& key);

  // Four independent 32-bit words for element (sample, unit): `sample` is the global sample position over the whole run
  // (for a token: sample position; see TokenCounter), `unit` the index inside it.
  std::array<uint32_t, 4> Words(uint64_t hi, uint64_t lo) const;

  // Uniform in [0, 1) with 24 bits, for element (hi, lo).
  float Uniform(uint64_t hi, uint64_t lo) const { return static_cast<float>(Words(hi, lo)[0] >> 8) * 0x1p-24f; }
  // Uniform in [0, 1) with 53 bits.
  double Uniform53(uint64_t hi, uint64_t lo) const;
  // Standard normal (Box-Muller on one counter).
  float Normal(uint64_t hi, uint64_t lo) const;
  // The generator's key: for kernels that make many words at once.
  std::array<uint32_t, 2> key() const { return {key_[0] ^ salt_[0], key_[1] ^ salt_[1]}; }

 private:
  uint32_t key_[2];
  uint32_t salt_[2];
};

// One counter for (sample position, token in its sequence); `unit` then indexes the hidden units of that token.
inline uint64_t TokenCounter(int64_t sample_position, int64_t token) {
  return (static_cast<uint64_t>(sample_position) << 24) ^ static_cast<uint64_t>(token);
}

}  // namespace shoal
