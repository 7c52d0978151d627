// Max-min quantisation: code of a run is block after block its grid and its elements' levels, 8 of them in `bits`
// bytes; a last group of fewer is padded with zeros.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"
#include "runtime/base/rng.h"

namespace shoal {
namespace {

constexpr int64_t kGroup = 8;

int64_t Padded(int64_t n) { return (n + kGroup - 1) / kGroup * kGroup; }

class Quantiser : public Codec {
 public:
  Quantiser(int bits, Rounding rounding, int64_t block)
      : bits_(bits),
        rounding_(rounding),
        block_(block),
        name_(absl::StrCat("q", bits, rounding == Rounding::kStochastic ? "_stochastic" : "")) {}
  absl::string_view name() const override { return name_; }
  bool exact() const override { return false; }
  bool biased() const override { return rounding_ == Rounding::kNearest; }
  int64_t block() const override { return block_; }
  int64_t Bytes(int64_t size) const override {
    return size / block_ * BlockBytes(block_) + (size % block_ > 0 ? BlockBytes(size % block_) : 0);
  }

  Encoded Encode(const CodecInput& input, const CodecKey& key, uint8_t* code) const override {
    float x[kMostElements], draws[kMostElements + 2 * kGroup];
    uint8_t levels[kMostElements];
    const Rng rng({key.seed, RngPurpose::kCodec, key.tensor, key.step});
    const uint64_t hi = static_cast<uint64_t>(key.rank) << 1 | static_cast<uint64_t>(key.point);
    Encoded encoded;
    for (int64_t at = 0; at < input.size; at += block_) {
      const int64_t n = std::min(block_, input.size - at);
      const Stretch stretch = LoadRun(input, at, n, x);
      encoded.squares += stretch.squares;
      if (!stretch.finite) {
        encoded.finite = false;
        QuantiserGrid::WriteNaN(code);
        std::fill_n(code + QuantiserGrid::kBytes, BlockBytes(n) - QuantiserGrid::kBytes, uint8_t{0});
      } else {
        const QuantiserGrid grid = QuantiserGrid::Of(stretch.min, stretch.max, bits_, rounding_);
        const float* drawn = nullptr;
        if (rounding_ == Rounding::kStochastic) {
          const int64_t first = key.first + at;
          DrawRun(rng.key(), hi, static_cast<uint64_t>(first / kGroup), Padded(n) / kGroup + 1, draws);
          drawn = draws + first % kGroup;
        }
        encoded.error_squares +=
            QuantiseRun(grid, n, x, drawn, levels, input.left == nullptr ? nullptr : input.left + at);
        std::fill(levels + n, levels + Padded(n), uint8_t{0});
        grid.Write(code);
        PackRun(bits_, levels, Padded(n), code + QuantiserGrid::kBytes);
      }
      code += BlockBytes(n);
    }
    return encoded;
  }

  void Decode(const uint8_t* code, int64_t size, Into into, float* out) const override {
    uint8_t levels[kMostElements];
    for (int64_t at = 0; at < size; at += block_) {
      const int64_t n = std::min(block_, size - at);
      UnpackRun(bits_, code + QuantiserGrid::kBytes, Padded(n), levels);
      DequantiseRun(QuantiserGrid::Read(code), levels, n, into, out + at);
      code += BlockBytes(n);
    }
  }

 private:
  int64_t BlockBytes(int64_t n) const { return QuantiserGrid::kBytes + Padded(n) / kGroup * bits_; }

  int bits_;
  Rounding rounding_;
  int64_t block_;
  std::string name_;
};

double ErrorsOfBits(const CodecInput& input, int64_t block, Rounding rounding, absl::Span<double> errors) {
  float x[kMostElements];
  double squares = 0;
  std::fill(errors.begin(), errors.end(), 0.0);
  for (int64_t at = 0; at < input.size; at += block) {
    const int64_t n = std::min(block, input.size - at);
    const Stretch stretch = LoadRun(input, at, n, x);
    squares += stretch.squares;
    if (!stretch.finite) continue;
    QuantiserGrid grids[kWidths];
    for (int w = 0; w < kWidths; ++w) grids[w] = QuantiserGrid::Of(stretch.min, stretch.max, kLeastBits + w, rounding);
    GridErrorsRun(grids, rounding, x, n, errors.data());
  }
  return squares;
}

}  // namespace

std::unique_ptr<Codec> MakeQuantiser(int bits, Rounding rounding, int64_t block) {
  return std::make_unique<Quantiser>(bits, rounding, block);
}
double NearestErrors(const CodecInput& input, int64_t block, absl::Span<double> errors) {
  return ErrorsOfBits(input, block, Rounding::kNearest, errors);
}
double StochasticErrors(const CodecInput& input, int64_t block, absl::Span<double> errors) {
  return ErrorsOfBits(input, block, Rounding::kStochastic, errors);
}

}  // namespace shoal
