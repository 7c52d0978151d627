// The one file that talks to oneDNN; versions 2 and 3.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/ops/cpu/gemm.h"

namespace shoal::cpu {

// Row-major sgemm by the calling thread alone: C = alpha op(A) op(B) + beta C. False where this build must not call
// oneDNN (ThreadSanitizer). With AVX-512 the order of an element's sum follows from k alone: whatever tiles C is cut
// into, its bits are the same.
bool OneDnnSgemm(const GemmShape& shape, float alpha, const float* a, const float* b, float beta, float* c);
// bf16 operands, fp32 accumulation, c f32 or bf16, by the calling thread alone. False where the processor has no bf16
// instructions (oneDNN would emulate them), whatever the shape.
bool OneDnnBf16Gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, ops::Accumulate accumulate, void* c,
                    DType c_type);
// Whether libraries are called at all (not under ThreadSanitizer), and whether OneDnnSgemm uses AVX-512
// (ONEDNN_MAX_CPU_ISA counts).
bool LibrariesAreCalled();
bool OneDnnUsesAvx512();
std::string OneDnnVersion();

}  // namespace shoal::cpu
