// The one file that talks to oneDNN; versions 2 and 3.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/ops/cpu/gemm.h"

namespace shoal::cpu {

// Row-major sgemm by the calling thread alone: C = alpha op(A) op(B) + beta C. False where this build must not call
// oneDNN (ThreadSanitizer).
bool OneDnnSgemm(const GemmShape& shape, float alpha, const float* a, const float* b, float beta, float* c);
std::string OneDnnVersion();

}  // namespace shoal::cpu
