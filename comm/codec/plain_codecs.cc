// fp32: as it is. bf16: each element rounded to the nearest, ties to even.
#include <algorithm>
#include <cstring>
#include <limits>

#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"

namespace shoal {
namespace {

class Fp32Codec : public Codec {
 public:
  absl::string_view name() const override { return "fp32"; }
  bool exact() const override { return true; }
  bool plain() const override { return true; }
  bool biased() const override { return false; }
  int64_t block() const override { return 1; }
  int64_t Bytes(int64_t size) const override { return size * static_cast<int64_t>(sizeof(float)); }
  Encoded Encode(const CodecInput& input, const CodecKey&, uint8_t* code) const override {
    return EncodeStretches(input, [code](float* x, int64_t n, int64_t at) {
      std::memcpy(code + Offset(at), x, static_cast<size_t>(Offset(n)));
      std::fill_n(x, n, 0.0F);
      return 0.0;
    });
  }
  void Decode(const uint8_t* code, int64_t size, Into into, float* out) const override {
    if (into == Into::kOverwrite) {
      if (size > 0) std::memcpy(out, code, static_cast<size_t>(Offset(size)));
      return;
    }
    for (int64_t i = 0; i < size; ++i) {
      float x;
      std::memcpy(&x, code + Offset(i), sizeof(x));
      out[i] += x;
    }
  }

 private:
  static int64_t Offset(int64_t elements) { return elements * static_cast<int64_t>(sizeof(float)); }
};

class Bf16Codec : public Codec {
 public:
  absl::string_view name() const override { return "bf16"; }
  bool exact() const override { return false; }
  bool biased() const override { return false; }
  int64_t block() const override { return 1; }
  int64_t Bytes(int64_t size) const override { return size * static_cast<int64_t>(sizeof(uint16_t)); }
  Encoded Encode(const CodecInput& input, const CodecKey&, uint8_t* code) const override {
    return EncodeStretches(input, [code](float* x, int64_t n, int64_t at) {
      uint16_t rounded[kMostElements];
      const double squares = RoundToBf16Run(n, x, rounded);
      std::memcpy(code + 2 * at, rounded, static_cast<size_t>(2 * n));
      return squares;
    });
  }
  void Decode(const uint8_t* code, int64_t size, Into into, float* out) const override {
    uint16_t rounded[kMostElements];
    for (int64_t at = 0; at < size; at += kMostElements) {
      const int64_t n = std::min(kMostElements, size - at);
      std::memcpy(rounded, code + 2 * at, static_cast<size_t>(2 * n));
      FromBf16Run(rounded, n, into, out + at);
    }
  }
};

}  // namespace

double Bf16Errors(const CodecInput& input, int64_t /*block*/, absl::Span<double> errors) {
  uint16_t rounded[kMostElements];
  const Encoded all =
      EncodeStretches(input, [&rounded](float* x, int64_t n, int64_t) { return RoundToBf16Run(n, x, rounded); });
  errors[0] = all.error_squares;
  return all.finite ? all.squares : std::numeric_limits<double>::quiet_NaN();
}

std::unique_ptr<Codec> MakeFp32Codec() { return std::make_unique<Fp32Codec>(); }
std::unique_ptr<Codec> MakeBf16Codec() { return std::make_unique<Bf16Codec>(); }

}  // namespace shoal
