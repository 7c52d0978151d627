#include "runtime/base/rng.h"

#include <cmath>

namespace shoal {
namespace {

constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u, kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;

uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kM0) * c[0];
    const uint64_t p1 = static_cast<uint64_t>(kM1) * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kW0;
    k1 += kW1;
  }
  return c;
}

}  // namespace

uint64_t NameHash(absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return Mix(hash);
}

Rng::Rng(const RngKey& key) {
  const uint64_t k = Mix(key.seed ^ Mix(static_cast<uint64_t>(key.purpose) << 32 | key.pass));
  const uint64_t salt = Mix(key.name + 0x9e3779b97f4a7c15ull * key.pass) ^ Mix(k);
  key_[0] = static_cast<uint32_t>(k);
  key_[1] = static_cast<uint32_t>(k >> 32);
  salt_[0] = static_cast<uint32_t>(salt);
  salt_[1] = static_cast<uint32_t>(salt >> 32);
}

std::array<uint32_t, 4> Rng::Words(uint64_t hi, uint64_t lo) const {
  return Philox({static_cast<uint32_t>(lo), static_cast<uint32_t>(lo >> 32), static_cast<uint32_t>(hi),
                 static_cast<uint32_t>(hi >> 32)},
                key_[0] ^ salt_[0], key_[1] ^ salt_[1]);
}

double Rng::Uniform53(uint64_t hi, uint64_t lo) const {
  const auto words = Words(hi, lo);
  return static_cast<double>((static_cast<uint64_t>(words[0]) << 32 | words[1]) >> 11) * 0x1p-53;
}

float Rng::Normal(uint64_t hi, uint64_t lo) const {
  const auto words = Words(hi, lo);
  const double u1 = (static_cast<double>(words[0]) + 1.0) * 0x1p-32;
  const double u2 = static_cast<double>(words[1]) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * M_PI * u2));
}

}  // namespace shoal
