// Convolution as GEMMs over unfolded pixels ("im2col"), a tile of output pixels at a time: every shape, every dtype,
// every build. T is float, double or BFloat16; the weight is of the arithmetic type, [o, kh, kw, c / groups].
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"
#include "runtime/ops/cpu/conv_shape.h"
#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::cpu {

template <class T>
void Im2colFwd(ThreadPool& pool, const ConvShape& s, const T* x, const Arithmetic<T>* weight, T* y);
template <class T>
void Im2colBwdInput(ThreadPool& pool, const ConvShape& s, const T* dy, const Arithmetic<T>* weight, T* dx);

// Sums over fixed slices of the output pixels, which do not depend on the number of threads: partial gradients of
// slices after the first lie in `partial`, [Im2colSlices(s) - 1, o, depth].
int64_t Im2colSlices(const ConvShape& s);
template <class T>
void Im2colBwdWeight(ThreadPool& pool, const ConvShape& s, const T* dy, const T* x, Arithmetic<T>* partial,
                     ops::Accumulate accumulate, Arithmetic<T>* dweight);

}  // namespace shoal::cpu
