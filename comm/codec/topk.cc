// TopK: code of a run is k indices (uint32, ascending) and then k values (f32). A sample says below which magnitude the
// k-th largest hardly lies; one pass collects what is not smaller, and only among that is the k-th largest looked for.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"

namespace shoal {
namespace {

constexpr uint32_t kInfiniteBits = 0x7f800000U;

// Bits of a magnitude order like it.
uint32_t Magnitude(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffU; }

// Magnitudes of x at up to 64 Ki elements, in groups that are spread evenly, the largest first.
std::vector<uint32_t> Sample(const CodecInput& input) {
  constexpr int64_t kGroup = 16, kGroups = 4096;
  const int64_t apart = std::max(kGroup, input.size / kGroups);
  std::vector<uint32_t> sample;
  sample.reserve(static_cast<size_t>(kGroup * std::min(kGroups, input.size / kGroup) + 2 * kGroup));
  for (int64_t at = 0; at < input.size; at += apart) {
    float x[kGroup];
    const int64_t n = std::min(kGroup, input.size - at);
    LoadRun(input, at, n, x);
    for (int64_t i = 0; i < n; ++i) sample.push_back(Magnitude(x[i]));
  }
  std::sort(sample.begin(), sample.end(), std::greater<>());
  return sample;
}

// A magnitude, never zero, that `density` of the elements hardly fall short of. Groups hold alike elements, hence the
// generous deviation; `slack` multiplies the rank that is looked up.
uint32_t LikelyThreshold(const std::vector<uint32_t>& sample, double density, double slack) {
  const double rank = density * static_cast<double>(sample.size());
  const double deep = slack * (rank + 5 * std::sqrt(rank) + 16);
  if (deep >= static_cast<double>(sample.size())) return 1;
  return std::clamp<uint32_t>(sample[static_cast<size_t>(deep)], 1, kInfiniteBits);
}

// The elements that are not below a threshold, in order: seldom many more than are kept.
struct Candidates {
  std::vector<uint32_t> indices;
  std::vector<float> values;
  double squares = 0, squares_below = 0;  // of them; of all others
  int64_t size() const { return static_cast<int64_t>(values.size()); }
};

Candidates Collect(const CodecInput& input, uint32_t least, int64_t expected) {
  uint32_t indices[kMostElements + kCollectSpare];
  float values[kMostElements + kCollectSpare];
  Candidates all;
  all.indices.reserve(static_cast<size_t>(expected));
  all.values.reserve(static_cast<size_t>(expected));
  for (int64_t at = 0; at < input.size; at += kMostElements) {
    const Collected some = CollectRun(input, at, std::min(kMostElements, input.size - at), least, indices, values);
    all.indices.insert(all.indices.end(), indices, indices + some.count);
    all.values.insert(all.values.end(), values, values + some.count);
    all.squares_below += some.squares_below;
    all.squares += LoadRun({.gradient = values, .size = some.count}, 0, some.count, values).squares;
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
    const std::vector<uint32_t> sample = Sample(input);
    CodecInput from = input;
    Candidates candidates;
    for (double slack = 1;; slack *= 8) {
      const uint32_t least = LikelyThreshold(sample, density_, slack);
      candidates = Collect(from, least, std::min(input.size, kept + kept / 2));
      if (candidates.size() >= kept || least == 1) break;
      // `left` is x by now, and the gradient that it may lie over is gone.
      if (input.left != nullptr) from = {.gradient = input.left, .size = input.size, .left = input.left};
    }
    Encoded encoded{.squares = candidates.squares + candidates.squares_below};
    encoded.finite = std::isfinite(encoded.squares);
    if (!encoded.finite) {
      std::vector<float> values(static_cast<size_t>(kept), 0.0F);
      values[0] = std::numeric_limits<float>::quiet_NaN();
      Write(std::vector<uint32_t>(static_cast<size_t>(kept), 0), values, code);
      return encoded;
    }
    encoded.error_squares = candidates.squares_below + Take(candidates, kept, input.left, code);
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
  int64_t Kept(int64_t size) const {
    const auto kept = static_cast<int64_t>(std::ceil(density_ * static_cast<double>(size)));
    return std::clamp<int64_t>(kept, std::min<int64_t>(1, size), size);
  }

  // Writes the `kept` largest candidates, whose place in `left` becomes zero, and returns the squares of the others.
  static double Take(Candidates& candidates, int64_t kept, float* left, uint8_t* code) {
    uint32_t threshold = 0;
    int64_t ties = 0;
    if (candidates.size() > kept) {
      std::vector<uint32_t> magnitudes(candidates.values.size());
      std::transform(candidates.values.begin(), candidates.values.end(), magnitudes.begin(), Magnitude);
      std::nth_element(magnitudes.begin(), magnitudes.begin() + (kept - 1), magnitudes.end(), std::greater<>());
      threshold = magnitudes[static_cast<size_t>(kept - 1)];
      ties = kept - std::count_if(magnitudes.begin(), magnitudes.begin() + kept,
                                  [threshold](uint32_t magnitude) { return magnitude > threshold; });
    }
    double squares = 0;
    // Where fewer are not zero, zeros make up the number: which ones does not matter, and so they are all the first.
    const auto zeros = static_cast<size_t>(std::max<int64_t>(0, kept - candidates.size()));
    std::vector<uint32_t> indices(zeros, 0);
    std::vector<float> values(zeros, 0.0F);
    indices.reserve(static_cast<size_t>(kept));
    values.reserve(static_cast<size_t>(kept));
    for (size_t i = 0; i < candidates.values.size(); ++i) {
      const float value = candidates.values[i];
      const uint32_t magnitude = Magnitude(value);
      if (magnitude < threshold || (magnitude == threshold && ties-- <= 0)) {
        squares += static_cast<double>(value) * static_cast<double>(value);
        continue;
      }
      indices.push_back(candidates.indices[i]);
      values.push_back(value);
      if (left != nullptr) left[candidates.indices[i]] = 0;
    }
    Write(indices, values, code);
    return squares;
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

// From one histogram, of what agrees in exponent and three bits of mantissa: whole bins above the k-th largest, and of
// its own bin a share. Values are taken to be spread evenly over a bin.
double TopKErrors(const CodecInput& input, int64_t /*block*/, absl::Span<double> errors) {
  constexpr int kBinShift = 20, kBins = 1 << (31 - kBinShift);
  constexpr int64_t kStretch = 2048;
  std::vector<uint64_t> counts(static_cast<size_t>(4 * kBins));  // four, so that equal bins do not wait for each other
  float x[kStretch];
  double squares = 0;
  for (int64_t at = 0; at < input.size; at += kStretch) {
    const int64_t n = std::min(kStretch, input.size - at);
    squares += LoadRun(input, at, n, x).squares;
    for (int64_t i = 0; i < n; ++i) ++counts[static_cast<size_t>((i & 3) * kBins) + (Magnitude(x[i]) >> kBinShift)];
  }
  if (!std::isfinite(squares)) return std::numeric_limits<double>::quiet_NaN();
  double kept[std::size(kTopKDensities)];
  for (size_t i = 0; i < errors.size(); ++i) {
    kept[i] = std::ceil(kTopKDensities[i] * static_cast<double>(input.size));
    errors[i] = 0;
  }
  for (uint32_t bin = (kInfiniteBits >> kBinShift) - 1;; --bin) {
    const auto count =
        static_cast<double>(counts[bin] + counts[kBins + bin] + counts[2 * kBins + bin] + counts[3 * kBins + bin]);
    const auto low = static_cast<double>(std::bit_cast<float>(bin << kBinShift));
    const auto high = static_cast<double>(std::bit_cast<float>(((bin + 1) << kBinShift) - 1));
    const double square = (low * low + low * high + high * high) / 3;
    for (size_t i = 0; i < errors.size(); ++i) {
      const double taken = std::min(kept[i], count);
      kept[i] -= taken;
      errors[i] += square * (count - taken);
    }
    if (bin == 0) break;
  }
  return squares;
}

}  // namespace shoal
