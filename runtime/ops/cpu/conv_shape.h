// A convolution's extents, which all of its implementations share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace shoal::cpu {

// x [n, h, w, c] with weight [o, kh, kw, c / groups] gives y [n, p, q, o].
struct ConvShape {
  int64_t n = 0, h = 0, w = 0, c = 0, o = 0, kh = 1, kw = 1, p = 0, q = 0;
  int64_t stride = 1, padding = 0, groups = 1;

  int64_t group_c() const { return c / groups; }
  int64_t group_o() const { return o / groups; }
  int64_t taps() const { return kh * kw; }
  int64_t depth() const { return taps() * group_c(); }  // products per output value
  int64_t pixels_in() const { return n * h * w; }
  int64_t pixels_out() const { return n * p * q; }
  double flops() const {
    return 2.0 * static_cast<double>(pixels_out()) * static_cast<double>(o) * static_cast<double>(depth());
  }
};

// [begin, end) of the taps along one axis that meet the image, for the output at `at`.
struct TapRange {
  int64_t begin = 0, end = 0;
};
inline TapRange ValidTaps(int64_t at, int64_t extent, int64_t taps, const ConvShape& s) {
  const int64_t first = at * s.stride - s.padding;
  const int64_t begin = std::clamp<int64_t>(-first, 0, taps);
  return {begin, std::clamp<int64_t>(extent - first, begin, taps)};
}

}  // namespace shoal::cpu
