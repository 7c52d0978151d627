// One compilation per dispatch target; see image_kernels.h.
#include "runtime/ops/cpu/image_kernels.h"

#include <cmath>
#include <cstring>

// Three targets are enough: what every x86-64 has, AVX2 with FMA, AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/cpu/image_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::cpu {
namespace HWY_NAMESPACE {

#include "runtime/ops/cpu/exp-inl.h"
#include "runtime/ops/cpu/image_kernels-inl.h"

template <class T>
const ImageKernels<T>& Kernels() {
  static constexpr ImageKernels<T> kKernels = {
      .norm = Norm<T>,
      .norm_back_sums = NormBackSums<T>,
      .norm_back = NormBack<T>,
      .channel_sums = ChannelSums<T>,
      .channel_dots = ChannelDots<T>,
      .channel_scale = ChannelScale<T>,
      .max_into = MaxInto<T>,
      .add_where = AddWhere<T>,
      .relu = Relu<T>,
      .relu_back = ReluBack<T>,
      .sigmoid = SigmoidOf<T>,
      .sigmoid_back = SigmoidBack<T>,
  };
  return kKernels;
}
const ImageKernels<float>& KernelsF() { return Kernels<float>(); }
const ImageKernels<double>& KernelsD() { return Kernels<double>(); }

}  // namespace HWY_NAMESPACE
}  // namespace shoal::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::cpu {

HWY_EXPORT(KernelsF);
HWY_EXPORT(KernelsD);

template <>
const ImageKernels<float>& ImageKernels<float>::Get() {
  return HWY_DYNAMIC_DISPATCH(KernelsF)();
}
template <>
const ImageKernels<double>& ImageKernels<double>::Get() {
  return HWY_DYNAMIC_DISPATCH(KernelsD)();
}

}  // namespace shoal::cpu
#endif  // HWY_ONCE
