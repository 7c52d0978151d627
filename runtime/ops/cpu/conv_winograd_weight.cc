// The weight's gradient by Winograd's F(3x3, 2x2): sums of 16 products over tiles, transformed into 3x3 taps at the
// end.
#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/conv_winograd.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/cpu/scratch.h"
#include "runtime/ops/cpu/winograd_tiles.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;

constexpr int64_t kTaps = 9;

WinogradTiles TilesOf(const ConvShape& s) { return {s.n, s.h, s.w, s.p, s.q, s.padding}; }

struct TileTask {
  int64_t column = 0, columns = 0, begin = 0, end = 0;  // output channels; pieces of tiles
};

// The 2x2 output gradients of tiles, transformed for one panel of channels: 16 x [tiles, panel].
void TransformGradients(const WinogradTiles& tiles, int64_t begin, int64_t count, const ConvShape& s, const float* dy,
                        int64_t columns, const float* zeros, float* out, int64_t stride) {
  const auto& kernels = ConvKernels::Get();
  float narrow[4 * kWidestPanel] = {};
  for (int64_t t = 0; t < count; ++t) {
    const float* pixels[4];
    tiles.Outputs(begin + t, dy, s.o, zeros, pixels);
    if (columns < kernels.panel) {
      for (int64_t i = 0; i < 4; ++i) {
        std::copy_n(pixels[i], columns, narrow + i * kernels.panel);
        pixels[i] = narrow + i * kernels.panel;
      }
    }
    kernels.winograd_output_back(pixels, kernels.panel, out + t * kernels.panel, stride);
  }
}

// out: rows of the gradient [o, 3, 3, c], from the task's first column.
void Compute(const ConvShape& s, const WinogradTiles& tiles, const TileTask& task, const float* dy, const float* x,
             Accumulate accumulate, float* out) {
  const auto& kernels = ConvKernels::Get();
  const int64_t panel = kernels.panel, panels = (task.columns + panel - 1) / panel, plane = s.c * panel;
  float* sums = Scratch<float>(ScratchSlot::kTile2, panels * kTileValues * plane);  // [panels, 16, c, panel]
  float* zeros = Scratch<float>(ScratchSlot::kRow0, std::max(s.c, panel));
  std::fill_n(sums, panels * kTileValues * plane, 0.0f);
  std::fill_n(zeros, std::max(s.c, panel), 0.0f);
  for (int64_t piece = task.begin; piece < task.end; ++piece) {
    const int64_t begin = tiles.begin(piece), count = tiles.begin(piece + 1) - begin;
    const int64_t x_stride = count * s.c + kStreamPad, dy_stride = count * panel + kStreamPad;
    float* in = Scratch<float>(ScratchSlot::kTile0, kTileValues * x_stride);
    float* gradients = Scratch<float>(ScratchSlot::kTile1, kTileValues * dy_stride);
    int64_t x_at[kPieceTiles], dy_at[kPieceTiles];
    for (int64_t t = 0; t < count; ++t) {
      const float* pixels[kTileValues];
      tiles.Inputs(begin + t, x, s.c, zeros, pixels);
      kernels.winograd_input(pixels, s.c, in + t * s.c, x_stride);
      x_at[t] = t * s.c;
      dy_at[t] = t * panel;
    }
    for (int64_t j = 0; j < panels; ++j) {
      TransformGradients(tiles, begin, count, s, dy + task.column + j * panel,
                         std::min(panel, task.columns - j * panel), zeros, gradients, dy_stride);
      for (int64_t v = 0; v < kTileValues; ++v) {
        const PixelTable table{in + v * x_stride, x_at, gradients + v * dy_stride, dy_at, count};
        kernels.outer(table, s.c, Accumulate::kAdd, sums + (j * kTileValues + v) * plane);
      }
    }
  }
  for (int64_t j = 0; j < panels; ++j) {
    float* values = sums + j * kTileValues * plane;
    kernels.winograd_weight_back(values, plane, plane);
    kernels.transpose_back(values, std::min(panel, task.columns - j * panel), kTaps * s.c, accumulate,
                           out + j * panel * kTaps * s.c, kTaps * s.c);
  }
}

}  // namespace

int64_t WinogradSlices(const ConvShape& s) {
  constexpr int64_t kTasks = 16;
  const int64_t blocks = (s.o + kWidestPanel - 1) / kWidestPanel;
  return std::clamp<int64_t>(kTasks / blocks, 1, std::max<int64_t>(1, TilesOf(s).pieces()));
}

void WinogradBwdWeight(ThreadPool& pool, const ConvShape& s, const float* dy, const float* x, float* partial,
                       Accumulate accumulate, float* dweight) {
  const WinogradTiles tiles = TilesOf(s);
  const int64_t slices = WinogradSlices(s), blocks = (s.o + kWidestPanel - 1) / kWidestPanel, size = s.o * s.depth();
  pool.Run(slices * blocks, [&](int64_t i) {
    const int64_t slice = i / blocks;
    TileTask task;
    task.column = i % blocks * kWidestPanel;
    task.columns = std::min(kWidestPanel, s.o - task.column);
    task.begin = tiles.pieces() * slice / slices;
    task.end = tiles.pieces() * (slice + 1) / slices;
    float* out = slice == 0 ? dweight : partial + (slice - 1) * size;
    Compute(s, tiles, task, dy, x, slice == 0 ? accumulate : Accumulate::kOverwrite, out + task.column * s.depth());
  });
  pool.ParallelFor(size, 16 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < slices - 1; ++i)
      AddRow(dweight + begin, partial + i * size + begin, end - begin, dweight + begin);
  });
}

}  // namespace shoal::cpu
