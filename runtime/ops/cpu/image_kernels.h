// The vectorised inner loops of image ops, on blocks of pixels: `rows` rows of `c` channels each. Compiled once per
// dispatch target like row_kernels.h. Per channel, sums run over rows in a fixed order, in f64. Outputs may be the very
// inputs.
#pragma once

#include <cstdint>

namespace shoal::cpu {

// Batch norm of a block: y = relu?(x * scale + shift + residual).
template <class T>
struct NormBlock {
  const T* x = nullptr;
  const T* residual = nullptr;  // null: none
  const T* scale = nullptr;     // weight * rstd
  const T* shift = nullptr;     // bias - mean * scale
  const T* mean = nullptr;      // backward only, like rstd
  const T* rstd = nullptr;
  int64_t rows = 0, c = 0;
  bool relu = false;
};

// T: float or double.
template <class T>
struct ImageKernels {
  void (*norm)(const NormBlock<T>& b, T* y);
  // sums[0..c) += g, sums[c..2c) += g * (x - mean) * rstd, where g = dy behind the ReLU.
  void (*norm_back_sums)(const T* dy, const NormBlock<T>& b, double* sums);
  // dx = scale * (g - offset - (x - mean) * slope); dresidual (may be null) = g.
  void (*norm_back)(const T* dy, const NormBlock<T>& b, const T* offset, const T* slope, T* dx, T* dresidual);
  // sums[0..c) += x, sums[c..2c) += x^2.
  void (*channel_sums)(const T* x, int64_t rows, int64_t c, double* sums);
  // sums[0..c) += a * b.
  void (*channel_dots)(const T* a, const T* b, int64_t rows, int64_t c, double* sums);
  // y[r] = x[r] * s for each row r.
  void (*channel_scale)(const T* x, const T* s, int64_t rows, int64_t c, T* y);

  // best = max(best, x), and `id` is noted where x is greater or NaN.
  void (*max_into)(const T* x, uint8_t id, int64_t c, T* best, uint8_t* argmax);
  // dx += dy where argmax == id.
  void (*add_where)(const T* dy, const uint8_t* argmax, uint8_t id, int64_t c, T* dx);

  void (*relu)(const T* x, int64_t n, T* y);
  void (*relu_back)(const T* dy, const T* y, int64_t n, T* dx);
  void (*sigmoid)(const T* x, int64_t n, T* y);
  void (*sigmoid_back)(const T* dy, const T* y, int64_t n, T* dx);

  static const ImageKernels& Get();  // of the target that runs here
};
template <>
const ImageKernels<float>& ImageKernels<float>::Get();
template <>
const ImageKernels<double>& ImageKernels<double>::Get();

}  // namespace shoal::cpu
