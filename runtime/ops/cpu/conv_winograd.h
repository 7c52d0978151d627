// Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), f32: 16 products make 2x2 outputs of a
// 3x3 kernel instead of 36. Tiles of 4x4 pixels and the weight are transformed (sums of pixels, mean of taps), 16
// products over channels follow, and 2x2 pixels are read off. The weight's gradient is F(3x3, 2x2) by the same
// transforms. Its rounding errors are those of direct convolution within a small factor (sums over channels only are
// shorter than sums over channels and taps).
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"
#include "runtime/ops/cpu/conv_shape.h"
#include "runtime/ops/ops.h"

namespace shoal::cpu {

// 3x3, stride 1, one group, padding of at most 2.
bool WinogradServes(const ConvShape& s);
// Whether the products saved are worth the transforms.
bool WinogradPays(const ConvShape& s);

// Elements of a transformed weight.
int64_t WinogradWeightSize(int64_t outputs, int64_t inputs);
// `transformed`: WinogradWeightSize(o, c) elements of workspace; for the backward WinogradWeightSize(c, o).
void WinogradFwd(ThreadPool& pool, const ConvShape& s, const float* x, const float* weight, float* transformed,
                 float* y);
void WinogradBwdInput(ThreadPool& pool, const ConvShape& s, const float* dy, const float* weight, float* transformed,
                      float* dx);

// Sums over fixed slices of the tiles, which do not depend on the number of threads: partial gradients of slices after
// the first lie in `partial`, [WinogradSlices(s) - 1, o, 3, 3, c].
int64_t WinogradSlices(const ConvShape& s);
void WinogradBwdWeight(ThreadPool& pool, const ConvShape& s, const float* dy, const float* x, float* partial,
                       ops::Accumulate accumulate, float* dweight);

}  // namespace shoal::cpu
