// TopK: code of a run is k indices (uint32, ascending) and then k values (f32). A histogram of magnitudes finds the bin
// that the k-th largest is in; only that bin's elements are sorted.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"

namespace shoal {
namespace {

// Bits of a magnitude order like it. A bin holds what agrees in exponent and three bits of mantissa.
constexpr int kBinShift = 20, kBins = 1 << (31 - kBinShift);
uint32_t Magnitude(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffU; }

// fn(x, first element, elements) for stretches of x = gradient + residual_scale * residual.
template <class F>
Encoded ForStretches(const CodecInput& input, F fn) {
  float x[kMostElements];
  Encoded all;
  for (int64_t at = 0; at < input.size; at += kMostElements) {
    const int64_t n = std::min(kMostElements, input.size - at);
    const Stretch stretch = LoadRun(input, at, n, x);
    all.squares += stretch.squares;
    all.finite = all.finite && stretch.finite;
    fn(x, at, n);
  }
  return all;
}

class TopK : public Codec {
 public:
  TopK(absl::string_view name, double density) : name_(name), density_(density) {}
  absl::string_view name() const override { return name_; }
  bool exact() const override { return density_ == 1; }
  bool biased() const override { return density_ < 1; }
  int64_t block() const override { return 1; }
  int64_t Bytes(int64_t size) const override { return Kept(size) * kEntry; }

  Encoded Encode(const CodecInput& input, const CodecKey&, uint8_t* code) const override {
    const int64_t kept = Kept(input.size);
    if (kept == 0) return {};
    std::vector<int64_t> counts(static_cast<size_t>(4 * kBins));  // four, so that equal bins do not wait for each other
    Encoded encoded = ForStretches(input, [&](const float* x, int64_t, int64_t n) {
      for (int64_t i = 0; i < n; ++i) ++counts[static_cast<size_t>((i & 3) * kBins) + (Magnitude(x[i]) >> kBinShift)];
    });
    if (!encoded.finite) {
      std::vector<float> values(static_cast<size_t>(kept), 0.0F);
      values[0] = std::numeric_limits<float>::quiet_NaN();
      Write(std::vector<uint32_t>(static_cast<size_t>(kept), 0), values, code);
      return encoded;
    }
    int64_t above = 0;
    uint32_t bin = kBins - 1;
    for (;; --bin) {
      const int64_t in_bin = counts[bin] + counts[kBins + bin] + counts[2 * kBins + bin] + counts[3 * kBins + bin];
      if (above + in_bin >= kept) break;
      above += in_bin;
    }
    const Threshold threshold = Find(input, bin, kept - above);
    Take(input, threshold, kept, code, encoded);
    return encoded;
  }

  void Decode(const uint8_t* code, int64_t size, Into into, float* out) const override {
    const int64_t kept = Kept(size);
    if (into == Into::kOverwrite) std::fill_n(out, size, 0.0F);
    for (int64_t i = 0; i < kept; ++i) {
      uint32_t index;
      float value;
      std::memcpy(&index, code + 4 * i, sizeof(index));
      std::memcpy(&value, code + 4 * (kept + i), sizeof(value));
      out[index] += value;
    }
  }

 private:
  static constexpr int64_t kEntry = 8;
  // What is larger is kept, and of what is equal the first `ties`.
  struct Threshold {
    uint32_t magnitude = 0;
    int64_t ties = 0;
  };

  int64_t Kept(int64_t size) const {
    const auto kept = static_cast<int64_t>(std::ceil(density_ * static_cast<double>(size)));
    return std::clamp<int64_t>(kept, std::min<int64_t>(1, size), size);
  }

  // The `rank`-th largest of a bin.
  static Threshold Find(const CodecInput& input, uint32_t bin, int64_t rank) {
    std::vector<uint32_t> candidates;
    ForStretches(input, [&](const float* x, int64_t, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        if (Magnitude(x[i]) >> kBinShift == bin) candidates.push_back(Magnitude(x[i]));
      }
    });
    const auto at = candidates.begin() + (rank - 1);
    std::nth_element(candidates.begin(), at, candidates.end(), std::greater<>());
    const uint32_t magnitude = *at;
    const int64_t larger =
        std::count_if(candidates.begin(), candidates.end(), [&](uint32_t m) { return m > magnitude; });
    return {magnitude, rank - larger};
  }

  static void Take(const CodecInput& input, Threshold threshold, int64_t kept, uint8_t* code, Encoded& encoded) {
    std::vector<uint32_t> indices;
    std::vector<float> values;
    indices.reserve(static_cast<size_t>(kept));
    values.reserve(static_cast<size_t>(kept));
    ForStretches(input, [&](float* x, int64_t at, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t m = Magnitude(x[i]);
        if (m < threshold.magnitude || (m == threshold.magnitude && threshold.ties == 0)) continue;
        if (m == threshold.magnitude) --threshold.ties;
        indices.push_back(static_cast<uint32_t>(at + i));
        values.push_back(x[i]);
        x[i] = 0;
      }
      encoded.error_squares +=
          LoadRun({.gradient = x, .size = n}, 0, n, input.left == nullptr ? x : input.left + at).squares;
    });
    Write(indices, values, code);
  }
  static void Write(const std::vector<uint32_t>& indices, const std::vector<float>& values, uint8_t* code) {
    std::memcpy(code, indices.data(), 4 * indices.size());
    std::memcpy(code + 4 * indices.size(), values.data(), 4 * values.size());
  }

  std::string name_;
  double density_;
};

}  // namespace

std::unique_ptr<Codec> MakeTopK(absl::string_view name, double density) {
  return std::make_unique<TopK>(name, density);
}

// From one histogram: whole bins above the k-th largest, and of its own bin a share at the bin's mean square.
double TopKErrors(const CodecInput& input, int64_t /*block*/, absl::Span<double> errors) {
  std::vector<double> squares(kBins), counts(kBins);
  const Encoded all = ForStretches(input, [&](const float* x, int64_t, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bin = Magnitude(x[i]) >> kBinShift;
      squares[bin] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      counts[bin] += 1;
    }
  });
  for (size_t i = 0; i < errors.size(); ++i) {
    double kept = std::ceil(kTopKDensities[i] * static_cast<double>(input.size));
    errors[i] = 0;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      const double taken = std::min(kept, counts[bin]);
      kept -= taken;
      if (counts[bin] > 0) errors[i] += squares[bin] * (1 - taken / counts[bin]);
    }
  }
  return all.finite ? all.squares : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace shoal
