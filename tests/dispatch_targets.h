// Runs a test on every dispatch target of the vectorised kernels that this processor has, by forcing them one by one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

// The targets that the kernels' files are built for.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/targets.h"

namespace shoal {

template <class F>
void OnEachDispatchTarget(F fn) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(target));
    fn();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace shoal
