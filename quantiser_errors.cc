// The error pass of quantisers, one per dispatch target.
#include <algorithm>
#include <cmath>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/quantiser_errors.cc"
#include "comm/codec/quantiser_kernels.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

#include "comm/codec/lanes-inl.h"

constexpr int64_t kChunk = 1024;

// Sum over y[0..n) of the squared distance to the nearest integer of y * per_unit, or of what rounding up or down by
// distance makes of it on average, f (1 - f). Where a grid's integer zero point lies does not matter. n is a multiple
// of kStripe. In fp32: chunks are short, and terms are at most 1/4.
template <Rounding kRounding>
HWY_INLINE double ErrorInUnits(const float* y, int64_t n, float prescale, float per_unit) {
  const Floats d;
  const Vector one = hn::Set(d, prescale), two = hn::Set(d, per_unit), magic = hn::Set(d, 0x1.8p23f);
  Vector sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kStripe) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector t = hn::Mul(hn::Mul(hn::Load(d, y + i + v * kLanes), one), two);
      const Vector off = hn::Sub(t, hn::Sub(hn::Add(t, magic), magic)), square = hn::Mul(off, off);
      sums[v] = hn::Add(sums[v], kRounding == Rounding::kNearest ? square : hn::Sub(hn::Abs(off), square));
    }
  }
  HWY_ALIGN float lanes[kStripe];
  for (int v = 0; v < kVectors; ++v) hn::Store(sums[v], d, lanes + v * kLanes);
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}
