// Naive float64 versions of the image ops, written from the formulas: what the op table compares the kernels with.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/ops/reference/reference.h"

namespace shoal::reference {

// x [n, h, w, c], weight [o, kh, kw, c / groups], y [n, p, q, o].
struct Conv {
  int64_t n = 1, h = 1, w = 1, c = 1, o = 1, kh = 1, kw = 1, stride = 1, padding = 0, groups = 1;
  int64_t p() const { return (h + 2 * padding - kh) / stride + 1; }
  int64_t q() const { return (w + 2 * padding - kw) / stride + 1; }
};
Values Conv2d(const Conv& conv, const Values& x, const Values& weight);
Values Conv2dBackwardInput(const Conv& conv, const Values& dy, const Values& weight);
Values Conv2dBackwardWeight(const Conv& conv, const Values& dy, const Values& x);

// Over rows of c channels; `residual` may be empty. Statistics come from x itself.
struct BatchNorm {
  Values x, residual, weight, bias;
  double epsilon = 1e-5;
  bool relu = false;
};
struct BatchStatistics {
  Values sum, squares, mean, rstd;
};
BatchStatistics Statistics(const BatchNorm& norm);
Values BatchNormForward(const BatchNorm& norm);
struct BatchNormGrads {
  Values dx, dresidual, dweight, dbias;
};
BatchNormGrads BatchNormBackward(const BatchNorm& norm, const Values& dy);

// x [n, h, w, c]. Padding is never the maximum.
struct Pool {
  int64_t n = 1, h = 1, w = 1, c = 1, size = 3, stride = 2, padding = 1;
  int64_t p() const { return (h + 2 * padding - size) / stride + 1; }
  int64_t q() const { return (w + 2 * padding - size) / stride + 1; }
};
Values MaxPool(const Pool& pool, const Values& x);
Values MaxPoolBackward(const Pool& pool, const Values& dy, const Values& x);
// 2x2 windows at stride 2, means over the pixels that exist.
Values AvgPool(const Pool& pool, const Values& x);
Values AvgPoolBackward(const Pool& pool, const Values& dy);

}  // namespace shoal::reference
