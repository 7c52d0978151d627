// The multiply-add loops of convolution, for f32. Compiled once per dispatch target like row_kernels.h.
//
// The right side of a product is packed into panels of `panel` columns: [k][panel], zero beyond the last column. One
// panel is as wide as the vector registers hold beside six rows of sums.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/ops/ops.h"

namespace shoal::cpu {

// `length` consecutive products: elements a.. of a row with rows b.. of a panel.
struct ProductRun {
  int64_t a = 0, b = 0, length = 0;
};

// Row r of the left side begins at a + a_at[r], its output at out + out_at[r].
struct RowTable {
  const float* a = nullptr;
  const int64_t* a_at = nullptr;
  float* out = nullptr;
  const int64_t* out_at = nullptr;
  int64_t rows = 0;
};

// Product k of a sum over pixels takes a + a_at[k] and b + b_at[k].
struct PixelTable {
  const float* a = nullptr;
  const int64_t* a_at = nullptr;
  const float* b = nullptr;
  const int64_t* b_at = nullptr;
  int64_t pixels = 0;
};

struct ConvKernels {
  int64_t panel = 0;  // a divisor of kWidestPanel

  // out[r][j] (=|+=) sum over runs of row r times panel, for j < columns <= panel.
  void (*rows)(const RowTable& table, absl::Span<const ProductRun> runs, const float* panel, int64_t columns,
               ops::Accumulate accumulate);
  // out[c * panel + j] (=|+=) sum over pixels of a[c] * b[j], for c < channels, j < panel.
  void (*outer)(const PixelTable& table, int64_t channels, ops::Accumulate accumulate, float* out);

  // to[c * panel + r] = from[r * stride + c] for r < rows <= panel, c < columns; 0 for the other r.
  void (*transpose)(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to);
  // Back: to[r * stride + c] (=|+=) from[c * panel + r].
  void (*transpose_back)(const float* from, int64_t rows, int64_t columns, ops::Accumulate accumulate, float* to,
                         int64_t stride);

  // Winograd's transforms, F(2x2, 3x3). Values of tile position t (of 4x4, row by row) lie at + t * stride; n >= 16.
  // Tile of 16 pixels of n channels -> 16 values of n; a pixel outside the image is given as zeros.
  void (*winograd_input)(const float* const* pixels, int64_t n, float* out, int64_t stride);
  // 16 values -> 2x2 pixels.
  void (*winograd_output)(const float* in, int64_t stride, int64_t n, float* const* pixels);
  // 3x3 taps at taps + tap * tap_stride -> 16 values.
  void (*winograd_weight)(const float* taps, int64_t tap_stride, int64_t n, float* out, int64_t stride);
  // The transposes of the last two: 2x2 pixels -> 16 values; 16 values -> 3x3 taps, tap t at + t * stride (in place).
  void (*winograd_output_back)(const float* const* pixels, int64_t n, float* out, int64_t stride);
  void (*winograd_weight_back)(float* values, int64_t n, int64_t stride);

  static const ConvKernels& Get();  // of the target that runs here
};
constexpr int64_t kWidestPanel = 64;

}  // namespace shoal::cpu
