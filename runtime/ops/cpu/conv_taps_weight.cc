// The weight's gradient of direct convolution: for each tap, the product of input pixels and output gradients that it
// joins. Tasks are rows of the kernel by blocks of output channels, and slices of the pixels where those are few.
#include <vector>

#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/conv_taps.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/cpu/scratch.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;

// Output channels of a task.
int64_t ColumnBlocks(const ConvShape& s) { return (s.group_o() + kWidestPanel - 1) / kWidestPanel; }

// Output pixels whose operands lie in the second-level cache together.
int64_t BlockPixels(const ConvShape& s) {
  constexpr int64_t kElements = 64 << 10, kLeast = 48, kMost = 192;
  return std::clamp(kElements / std::max<int64_t>(1, s.group_c()), kLeast, kMost);
}

// Pixels of a block of the output.
class PixelBlock {
 public:
  PixelBlock(const ConvShape& s, int64_t begin, int64_t end) : s_(s) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t q = i % s.q, p = i / s.q % s.p, n = i / s.q / s.p;
      all_.push_back({n * s.h, p * s.stride - s.padding, q * s.stride - s.padding});
    }
  }
  // Those that tap (i, j) joins with the image: offsets into the image and into a panel.
  void Join(int64_t i, int64_t j, int64_t panel, std::vector<int64_t>* x_at, std::vector<int64_t>* dy_at) const {
    x_at->clear(), dy_at->clear();
    int64_t at = 0;
    for (const Pixel& pixel : all_) {
      const int64_t row = pixel.top + i, column = pixel.left + j;
      if (row >= 0 && row < s_.h && column >= 0 && column < s_.w) {
        x_at->push_back(((pixel.image + row) * s_.w + column) * s_.c);
        dy_at->push_back(at);
      }
      at += panel;
    }
  }

 private:
  struct Pixel {
    int64_t image, top, left;
  };
  const ConvShape& s_;
  std::vector<Pixel> all_;
};

struct WeightTask {
  int64_t row = 0;                                                 // of the kernel
  int64_t group = 0, column = 0, columns = 0, begin = 0, end = 0;  // columns of the group; blocks of pixels
};

// out: the gradient [o, kh, kw, c / groups] from the task's first output channel and row.
void Compute(const ConvShape& s, const WeightTask& task, const float* dy, const float* x, Accumulate accumulate,
             float* out) {
  const auto& kernels = ConvKernels::Get();
  const int64_t panel = kernels.panel, c = s.group_c(), width = s.kw * c, block = BlockPixels(s);
  const int64_t panels = (task.columns + panel - 1) / panel;
  float* sums = Scratch<float>(ScratchSlot::kTile0, panels * width * panel);  // [panels, kw, c, panel]
  float* packed = Scratch<float>(ScratchSlot::kTile1, panels * block * panel);
  std::fill_n(sums, panels * width * panel, 0.0f);
  std::vector<int64_t> x_at, dy_at;
  for (int64_t b = task.begin; b < task.end; ++b) {
    const int64_t first = b * block, last = std::min(s.pixels_out(), first + block);
    for (int64_t j = 0; j < panels; ++j) {
      const int64_t columns = std::min(panel, task.columns - j * panel);
      for (int64_t i = first; i < last; ++i) {
        const float* from = dy + i * s.o + task.group * s.group_o() + task.column + j * panel;
        float* to = packed + (j * block + i - first) * panel;
        std::copy_n(from, columns, to);
        std::fill(to + columns, to + panel, 0.0f);
      }
    }
    const PixelBlock pixels(s, first, last);
    for (int64_t tap = 0; tap < s.kw; ++tap) {
      pixels.Join(task.row, tap, panel, &x_at, &dy_at);
      if (x_at.empty()) continue;
      for (int64_t j = 0; j < panels; ++j) {
        const PixelTable table{x + task.group * c, x_at.data(), packed + j * block * panel, dy_at.data(),
                               static_cast<int64_t>(x_at.size())};
        kernels.outer(table, c, Accumulate::kAdd, sums + (j * width + tap * c) * panel);
      }
    }
  }
  for (int64_t j = 0; j < panels; ++j) {
    const int64_t columns = std::min(panel, task.columns - j * panel);
    kernels.transpose_back(sums + j * width * panel, columns, width, accumulate, out + j * panel * s.depth(),
                           s.depth());
  }
}

}  // namespace

int64_t TapsSlices(const ConvShape& s) {
  constexpr int64_t kTasks = 16;
  const int64_t blocks = (s.pixels_out() + BlockPixels(s) - 1) / BlockPixels(s);
  return std::clamp<int64_t>(kTasks / (s.groups * ColumnBlocks(s) * s.kh), 1, std::max<int64_t>(1, blocks));
}

void TapsBwdWeight(ThreadPool& pool, const ConvShape& s, const float* dy, const float* x, float* partial,
                   Accumulate accumulate, float* dweight) {
  const int64_t slices = TapsSlices(s), columns = ColumnBlocks(s);
  const int64_t blocks = (s.pixels_out() + BlockPixels(s) - 1) / BlockPixels(s), size = s.o * s.depth();
  pool.Run(slices * s.groups * columns * s.kh, [&](int64_t i) {
    const int64_t slice = i / s.kh / columns / s.groups;
    WeightTask task;
    task.row = i % s.kh;
    task.group = i / s.kh / columns % s.groups;
    task.column = i / s.kh % columns * kWidestPanel;
    task.columns = std::min(kWidestPanel, s.group_o() - task.column);
    task.begin = blocks * slice / slices;
    task.end = blocks * (slice + 1) / slices;
    float* out = slice == 0 ? dweight : partial + (slice - 1) * size;
    Compute(s, task, dy, x, slice == 0 ? accumulate : Accumulate::kOverwrite,
            out + (task.group * s.group_o() + task.column) * s.depth() + task.row * s.kw * s.group_c());
  });
  pool.ParallelFor(size, 16 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < slices - 1; ++i)
      AddRow(dweight + begin, partial + i * size + begin, end - begin, dweight + begin);
  });
}

}  // namespace shoal::cpu
