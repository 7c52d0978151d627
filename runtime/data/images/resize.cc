#include "runtime/data/images/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace shoal {
namespace {

constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);

// Weights are not negative and add up to 1, give or take their rounding.
uint8_t Rounded(int32_t sum) { return static_cast<uint8_t>(std::min(sum >> kBits, 255)); }

template <int kChannels>
void HorizontalRow(const uint8_t* in, const int32_t* first, const int32_t* count, const int32_t* weights, int taps,
                   int width, uint8_t* out) {
  for (int x = 0; x < width; ++x, weights += taps, out += kChannels) {
    int32_t sum[kChannels];
    for (int c = 0; c < kChannels; ++c) sum[c] = kHalf;
    const uint8_t* from = in + int64_t{first[x]} * kChannels;
    for (int t = 0; t < count[x]; ++t, from += kChannels) {
      for (int c = 0; c < kChannels; ++c) sum[c] += from[c] * weights[t];
    }
    for (int c = 0; c < kChannels; ++c) out[c] = Rounded(sum[c]);
  }
}

}  // namespace

void Resizer::Prepare(int in, int full_out, int begin, int count, Axis& axis) {
  const double scale = static_cast<double>(in) / full_out, support = std::max(scale, 1.0), inverse = 1 / support;
  axis.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.first.resize(count);
  axis.count.resize(count);
  axis.weights.resize(static_cast<size_t>(count) * axis.taps);
  std::vector<double>& w = axis.unrounded;
  w.resize(axis.taps);
  for (int o = 0; o < count; ++o) {
    const double center = (begin + o + 0.5) * scale;
    const int least = std::max(0, static_cast<int>(center - support + 0.5));
    const int taps = std::min(in, static_cast<int>(center + support + 0.5)) - least;
    double total = 0;
    for (int t = 0; t < taps; ++t) {
      w[t] = std::max(0.0, 1 - std::abs((t + least - center + 0.5) * inverse));
      total += w[t];
    }
    const double share = 1 / total;
    axis.first[o] = least;
    axis.count[o] = taps;
    int32_t* to = &axis.weights[static_cast<size_t>(o) * axis.taps];
    for (int t = 0; t < taps; ++t) to[t] = static_cast<int32_t>(0.5 + w[t] * share * (1 << kBits));
  }
}

void Resizer::Resize(const ImageView& in, const ResizedPart& part, uint8_t* out) {
  const int channels = in.channels;
  const int64_t out_row = int64_t{part.width} * channels;
  Prepare(in.width, part.full_width, part.x, part.width, horizontal_);
  Prepare(in.height, part.full_height, part.y, part.height, vertical_);
  // Only the rows that the vertical pass reads.
  const int first_row = vertical_.first.front(), rows = vertical_.first.back() + vertical_.count.back() - first_row;
  rows_.resize(std::max(rows_.size(), static_cast<size_t>(rows * out_row)));
  for (int y = 0; y < rows; ++y) {
    const uint8_t* from = in.Row(first_row + y);
    uint8_t* to = &rows_[y * out_row];
    if (in.width == part.full_width) {
      std::memcpy(to, from + int64_t{part.x} * channels, static_cast<size_t>(out_row));
    } else {
      const auto horizontal = channels == 1 ? HorizontalRow<1> : HorizontalRow<3>;
      horizontal(from, horizontal_.first.data(), horizontal_.count.data(), horizontal_.weights.data(), horizontal_.taps,
                 part.width, to);
    }
  }
  if (in.height == part.full_height) {
    std::memcpy(out, rows_.data(), static_cast<size_t>(part.height * out_row));
    return;
  }
  sums_.resize(static_cast<size_t>(out_row));
  int32_t* sums = sums_.data();
  for (int y = 0; y < part.height; ++y) {
    std::fill_n(sums, out_row, kHalf);
    for (int t = 0; t < vertical_.count[y]; ++t) {
      const int32_t weight = vertical_.weights[static_cast<size_t>(y) * vertical_.taps + t];
      const uint8_t* from = &rows_[(vertical_.first[y] - first_row + t) * out_row];
      for (int64_t i = 0; i < out_row; ++i) sums[i] += from[i] * weight;
    }
    uint8_t* to = out + y * out_row;
    for (int64_t i = 0; i < out_row; ++i) to[i] = Rounded(sums[i]);
  }
}

}  // namespace shoal
