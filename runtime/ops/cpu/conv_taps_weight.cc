// The weight's gradient of direct convolution: for each tap, the product of input pixels and output gradients that it
// joins.
#include <vector>

#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/conv_taps.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/cpu/scratch.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;

// Output channels of a task.
constexpr int64_t kColumns = kWidestPanel;

int64_t ColumnBlocks(const ConvShape& s) { return s.groups * ((s.group_o() + kColumns - 1) / kColumns); }

// Output pixels whose operands lie in the second-level cache together.
int64_t BlockPixels(const ConvShape& s) {
  constexpr int64_t kElements = 64 << 10, kLeast = 48, kMost = 192;
  return std::clamp(kElements / std::max<int64_t>(1, s.group_c()), kLeast, kMost);
}

// Which taps of a kernel's row are handled together: each alone, or, where a pixel has few channels, all that a pixel
// of the output sees, whose pixels of the image lie side by side.
struct Spans {
  bool merged = false;
  std::vector<TapRange> all;

  explicit Spans(const ConvShape& s) : merged(s.groups == 1 && s.c < kFewChannels) {
    for (int64_t j = 0; j < s.kw && !merged; ++j) all.push_back({j, j + 1});
    for (int64_t q = 0; q < s.q && merged; ++q) {
      const TapRange seen = ValidTaps(q, s.w, s.kw, s);
      if (seen.begin < seen.end && std::find(all.begin(), all.end(), seen) == all.end()) all.push_back(seen);
    }
  }
  bool Joins(TapRange span, TapRange seen) const {
    return merged ? span == seen : seen.begin <= span.begin && span.end <= seen.end;
  }

 private:
  static constexpr int64_t kFewChannels = 16;
};

// Pixels of a block of the output.
class Pixels {
 public:
  Pixels(const ConvShape& s, const Spans& spans, int64_t begin, int64_t end) : s_(s), spans_(spans) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t q = i % s.q, p = i / s.q % s.p, n = i / s.q / s.p;
      all_.push_back({n * s.h, p * s.stride - s.padding, q * s.stride - s.padding, ValidTaps(q, s.w, s.kw, s)});
    }
  }
  // Those that the span of the kernel's row i joins with the image: offsets into the image and into a panel.
  void Join(int64_t i, TapRange span, int64_t panel, std::vector<int64_t>* x_at, std::vector<int64_t>* dy_at) const {
    x_at->clear(), dy_at->clear();
    int64_t at = 0;
    for (const Pixel& pixel : all_) {
      const int64_t row = pixel.top + i;
      if (row >= 0 && row < s_.h && spans_.Joins(span, pixel.seen)) {
        x_at->push_back(((pixel.image + row) * s_.w + pixel.left + span.begin) * s_.c);
        dy_at->push_back(at);
      }
      at += panel;
    }
  }

 private:
  struct Pixel {
    int64_t image, top, left;
    TapRange seen;
  };
  const ConvShape& s_;
  const Spans& spans_;
  std::vector<Pixel> all_;
};

struct Task {
  int64_t group = 0, column = 0, columns = 0, begin = 0, end = 0;  // columns of the group; blocks of pixels
};

// out: columns of the gradient [o, taps, c / groups], from the task's first.
void Compute(const ConvShape& s, const Task& task, const float* dy, const float* x, Accumulate accumulate, float* out) {
  const auto& kernels = ConvKernels::Get();
  const int64_t panel = kernels.panel, c = s.group_c(), taps = s.taps(), block = BlockPixels(s);
  const int64_t panels = (task.columns + panel - 1) / panel;
  float* sums = Scratch<float>(ScratchSlot::kTile0, panels * taps * c * panel);  // [panels, taps, c, panel]
  float* packed = Scratch<float>(ScratchSlot::kTile1, panels * block * panel);
  std::fill_n(sums, panels * taps * c * panel, 0.0f);
  std::vector<int64_t> x_at, dy_at;
  const Spans spans(s);
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
    const Pixels pixels(s, spans, first, last);
    for (int64_t i = 0; i < s.kh; ++i) {
      for (const TapRange span : spans.all) {
        pixels.Join(i, span, panel, &x_at, &dy_at);
        if (x_at.empty()) continue;
        for (int64_t j = 0; j < panels; ++j) {
          const PixelTable table{x + task.group * c, x_at.data(), packed + j * block * panel, dy_at.data(),
                                 static_cast<int64_t>(x_at.size())};
          kernels.outer(table, (span.end - span.begin) * c, Accumulate::kAdd,
                        sums + (j * taps + i * s.kw + span.begin) * c * panel);
        }
      }
    }
  }
  for (int64_t j = 0; j < panels; ++j) {
    const int64_t columns = std::min(panel, task.columns - j * panel);
    kernels.transpose_back(sums + j * taps * c * panel, columns, taps * c, accumulate, out + j * panel * taps * c);
  }
}

}  // namespace

int64_t TapsSlices(const ConvShape& s) {
  constexpr int64_t kTasks = 16;
  const int64_t blocks = (s.pixels_out() + BlockPixels(s) - 1) / BlockPixels(s);
  return std::clamp<int64_t>(kTasks / ColumnBlocks(s), 1, std::max<int64_t>(1, blocks));
}

void TapsBwdWeight(ThreadPool& pool, const ConvShape& s, const float* dy, const float* x, float* partial,
                   Accumulate accumulate, float* dweight) {
  const int64_t slices = TapsSlices(s), columns = ColumnBlocks(s), per_group = columns / s.groups;
  const int64_t blocks = (s.pixels_out() + BlockPixels(s) - 1) / BlockPixels(s), size = s.o * s.depth();
  pool.Run(slices * columns, [&](int64_t i) {
    const int64_t slice = i / columns;
    Task task;
    task.group = i % columns / per_group;
    task.column = i % columns % per_group * kColumns;
    task.columns = std::min(kColumns, s.group_o() - task.column);
    task.begin = blocks * slice / slices;
    task.end = blocks * (slice + 1) / slices;
    float* out = slice == 0 ? dweight : partial + (slice - 1) * size;
    Compute(s, task, dy, x, slice == 0 ? accumulate : Accumulate::kOverwrite,
            out + (task.group * s.group_o() + task.column) * s.depth());
  });
  pool.ParallelFor(size, 16 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < slices - 1; ++i)
      AddRow(dweight + begin, partial + i * size + begin, end - begin, dweight + begin);
  });
}

}  // namespace shoal::cpu
