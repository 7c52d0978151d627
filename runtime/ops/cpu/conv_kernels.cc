// One compilation per dispatch target; see conv_kernels.h.
#include "runtime/ops/cpu/conv_kernels.h"

#include <cstring>
#include <type_traits>

// Three targets are enough: what every x86-64 has, AVX2 with FMA, AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/cpu/conv_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::cpu {
namespace HWY_NAMESPACE {

#include "runtime/ops/cpu/conv_kernels-inl.h"
#include "runtime/ops/cpu/conv_winograd-inl.h"

const ConvKernels& Kernels() {
  static constexpr ConvKernels kKernels = {

      .panel = kPanel,
      .rows = Rows,
      .outer = Outer,
      .transpose = Transpose,
      .transpose_back = TransposeBack,
      .winograd_input = WinogradInput,
      .winograd_output = WinogradOutput,
      .winograd_weight = WinogradWeight,
      .winograd_output_back = WinogradOutputBack,
      .winograd_weight_back = WinogradWeightBack,
  };
  return kKernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::cpu {

HWY_EXPORT(Kernels);
const ConvKernels& ConvKernels::Get() { return HWY_DYNAMIC_DISPATCH(Kernels)(); }

}  // namespace shoal::cpu
#endif  // HWY_ONCE
