// The one file that talks to OpenBLAS, which is loaded where it is installed. It computes fp32 products where oneDNN's
// are slow: on AMD's processors without AVX-512 (measured with oneDNN 2.6 on an EPYC: 39 GFLOP/s a core against 85; on
// Intel's the two are level). The rule asks for no measurement, so that every run on a machine has the same bits.
#pragma once

#include <string>

#include "runtime/ops/cpu/gemm.h"

namespace shoal::cpu {

// Row-major sgemm by the calling thread alone: C = alpha op(A) op(B) + beta C. False where OpenBLAS is not to be had.
bool OpenBlasSgemm(const GemmShape& shape, float alpha, const float* a, const float* b, float beta, float* c);
// Whether it is there (like oneDNN, never under ThreadSanitizer), and whether products are for it.
bool HasOpenBlas();
bool PrefersOpenBlas();
// "OpenBLAS 0.3.21 (Haswell)", as it says itself; empty where it is not there.
std::string OpenBlasVersion();
// Keeps OpenBLAS from starting threads of its own, which nobody uses: ours call it. Before the first product, while the
// process has one thread.
void KeepOpenBlasToOneThread();

}  // namespace shoal::cpu
