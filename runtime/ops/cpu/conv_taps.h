// Direct convolution over valid taps, f32: products with the padding are never made. Output pixels whose valid taps are
// the same (a corner's, an edge's, the interior's) are rows of one product, whose left side is read where it lies in
// the image and whose right side is the weight, packed a piece at a time. Serves every shape; images of 1x1 or 2x2
// pixels are products over the batch.
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"
#include "runtime/ops/cpu/conv_shape.h"
#include "runtime/ops/ops.h"

namespace shoal::cpu {

void TapsFwd(ThreadPool& pool, const ConvShape& s, const float* x, const float* weight, float* y);
void TapsBwdInput(ThreadPool& pool, const ConvShape& s, const float* dy, const float* weight, float* dx);

// Sums over fixed slices of the output pixels, which do not depend on the number of threads: partial gradients of
// slices after the first lie in `partial`, [TapsSlices(s) - 1, o, depth].
int64_t TapsSlices(const ConvShape& s);
void TapsBwdWeight(ThreadPool& pool, const ConvShape& s, const float* dy, const float* x, float* partial,
                   ops::Accumulate accumulate, float* dweight);

}  // namespace shoal::cpu
