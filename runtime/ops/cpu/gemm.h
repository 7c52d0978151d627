// Matrix products on raw row-major memory, one thread's worth or a pool's worth. The only way from ops to oneDNN
// and OpenBLAS.
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/dtype.h"

namespace shoal::cpu {

// C_MN (=|+=) op(A) op(B); lda, ldb, ldc in elements. Computed by the calling thread alone.
struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  ops::Transpose transpose_a = ops::Transpose::kNo, transpose_b = ops::Transpose::kNo;
  int64_t lda = 0, ldb = 0, ldc = 0;
};
void Gemm(const GemmShape& shape, const float* a, const float* b, ops::Accumulate accumulate, float* c);
void Gemm(const GemmShape& shape, const double* a, const double* b, ops::Accumulate accumulate, double* c);
// alpha * op(A) op(B), overwriting C.
void GemmScaled(const GemmShape& shape, float alpha, const float* a, const float* b, float* c);
void GemmScaled(const GemmShape& shape, double alpha, const double* a, const double* b, double* c);

// Cuts C into tiles, one task each. Results do not depend on the number of threads.
template <class T>
void ParallelGemm(ThreadPool& pool, const GemmShape& shape, const T* a, const T* b, ops::Accumulate accumulate, T* c);
extern template void ParallelGemm<float>(ThreadPool&, const GemmShape&, const float*, const float*, ops::Accumulate,
                                         float*);
extern template void ParallelGemm<double>(ThreadPool&, const GemmShape&, const double*, const double*, ops::Accumulate,
                                          double*);

// C = op(A) op(B) by one library, whichever of them products are for. False, with c untouched, where it is not there.
using SgemmFn = bool (*)(const GemmShape& shape, float alpha, const float* a, const float* b, float beta, float* c);
bool ParallelSgemm(ThreadPool& pool, SgemmFn library, const GemmShape& shape, const float* a, const float* b, float* c);

// ParallelGemm for bf16 operands with the processor's own instructions; c is f32 or bf16. False, with c untouched,
// where there are none: the caller widens.
bool ParallelGemmBf16(ThreadPool& pool, const GemmShape& shape, const BFloat16* a, const BFloat16* b,
                      ops::Accumulate accumulate, void* c, DType c_type);

}  // namespace shoal::cpu
