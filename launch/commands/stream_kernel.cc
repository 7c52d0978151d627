#include "launch/commands/stream_kernel.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "launch/commands/stream_kernel.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

void StreamLoop(const float* __restrict a, int64_t n, float* __restrict b, float* __restrict c, float* __restrict d) {
  for (int64_t i = 0; i < n; ++i) {
    b[i] = 0.5f * (a[i] + b[i]);
    c[i] = 0.5f * (a[i] + c[i]);
    d[i] = 0.5f * (a[i] + d[i]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {
HWY_EXPORT(StreamLoop);
void StreamRun(const float* a, int64_t n, float* b, float* c, float* d) {
  HWY_DYNAMIC_DISPATCH(StreamLoop)(a, n, b, c, d);
}
}  // namespace shoal
#endif
