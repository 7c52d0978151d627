#include "runtime/ops/cpu/conv_im2col.h"

#include "runtime/ops/cpu/gemm.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;
using ops::Transpose;

// Output pixels of one tile: its unfolded pixels stay in the second-level cache.
int64_t TilePixels(const ConvShape& s) {
  constexpr int64_t kElements = 96 << 10, kLeast = 16, kMost = 1024;
  return std::clamp(kElements / std::max<int64_t>(1, s.depth()), kLeast, kMost);
}

template <class T>
void Widen(const T* from, int64_t n, Arithmetic<T>* to) {
  if constexpr (std::is_same_v<T, BFloat16>)
    ToFloat(from, n, to);
  else
    std::copy_n(from, n, to);
}

struct OutputPixel {
  int64_t n, p, q;
};
OutputPixel PixelAt(const ConvShape& s, int64_t at) { return {at / (s.p * s.q), at / s.q % s.p, at % s.q}; }

// Rows [begin, end) of the unfolded input of one group: [pixels, kh, kw, c / groups], zero outside the image.
template <class T>
void Unfold(const ConvShape& s, const T* x, int64_t group, int64_t begin, int64_t end, Arithmetic<T>* out) {
  using A = Arithmetic<T>;
  const int64_t c = s.group_c(), row = s.kw * c;
  for (int64_t at = begin; at < end; ++at) {
    const OutputPixel y = PixelAt(s, at);
    const TapRange rows = ValidTaps(y.p, s.h, s.kh, s), columns = ValidTaps(y.q, s.w, s.kw, s);
    for (int64_t i = 0; i < s.kh; ++i, out += row) {
      if (i < rows.begin || i >= rows.end || columns.begin == columns.end) {
        std::fill_n(out, row, A(0));
        continue;
      }
      const int64_t line = (y.n * s.h + y.p * s.stride - s.padding + i) * s.w + y.q * s.stride - s.padding;
      std::fill_n(out, columns.begin * c, A(0));
      std::fill(out + columns.end * c, out + row, A(0));
      if (s.groups == 1) {
        Widen(x + (line + columns.begin) * c, (columns.end - columns.begin) * c, out + columns.begin * c);
        continue;
      }
      for (int64_t j = columns.begin; j < columns.end; ++j) Widen(x + (line + j) * s.c + group * c, c, out + j * c);
    }
  }
}

// The transpose of Unfold: adds rows [begin, end) of unfolded gradients to the image `n`, which `dx` is.
template <class A>
void Fold(const ConvShape& s, const A* unfolded, int64_t group, int64_t begin, int64_t end, A* dx) {
  const int64_t c = s.group_c(), row = s.kw * c;
  for (int64_t at = begin; at < end; ++at) {
    const OutputPixel y = PixelAt(s, at);
    const TapRange rows = ValidTaps(y.p, s.h, s.kh, s), columns = ValidTaps(y.q, s.w, s.kw, s);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t line = (y.p * s.stride - s.padding + i) * s.w + y.q * s.stride - s.padding;
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        A* to = dx + (line + j) * s.c + group * c;
        AddRow(to, unfolded + i * row + j * c, c, to);
      }
    }
    unfolded += s.kh * row;
  }
}

// dy of pixels [begin, end) and one group as arithmetic rows: where they are, or widened; the row stride comes back.
template <class T>
const Arithmetic<T>* ReadPixels(const ConvShape& s, const T* dy, int64_t group, int64_t begin, int64_t end,
                                int64_t* stride) {
  const T* from = dy + begin * s.o + group * s.group_o();
  *stride = s.o;
  if constexpr (std::is_same_v<T, BFloat16>) {
    *stride = s.group_o();
    float* wide = Scratch<float>(ScratchSlot::kTile1, (end - begin) * s.group_o());
    for (int64_t r = 0; r < end - begin; ++r) ToFloat(from + r * s.o, s.group_o(), wide + r * s.group_o());
    return wide;
  } else {
    return from;
  }
}

}  // namespace

template <class T>
void Im2colFwd(ThreadPool& pool, const ConvShape& s, const T* x, const Arithmetic<T>* weight, T* y) {
  using A = Arithmetic<T>;
  const int64_t tile = TilePixels(s), pixels = s.pixels_out(), o = s.group_o(), k = s.depth();
  pool.Run((pixels + tile - 1) / tile, [&](int64_t task) {
    const int64_t begin = task * tile, end = std::min(pixels, begin + tile), rows = end - begin;
    A* unfolded = Scratch<A>(ScratchSlot::kTile0, rows * k);
    for (int64_t g = 0; g < s.groups; ++g) {
      Unfold(s, x, g, begin, end, unfolded);
      T* to = y + begin * s.o + g * o;
      GemmShape gemm{rows, o, k, Transpose::kNo, Transpose::kYes, k, k, s.o};
      if constexpr (std::is_same_v<T, BFloat16>) {
        gemm.ldc = o;
        float* wide = Scratch<float>(ScratchSlot::kTile1, rows * o);
        Gemm(gemm, unfolded, weight + g * o * k, Accumulate::kOverwrite, wide);
        for (int64_t r = 0; r < rows; ++r) FromFloat(wide + r * o, o, to + r * s.o);
      } else {
        Gemm(gemm, unfolded, weight + g * o * k, Accumulate::kOverwrite, to);
      }
    }
  });
}

template <class T>
void Im2colBwdInput(ThreadPool& pool, const ConvShape& s, const T* dy, const Arithmetic<T>* weight, T* dx) {
  using A = Arithmetic<T>;
  const int64_t tile = TilePixels(s), image = s.h * s.w * s.c, pixels = s.p * s.q, o = s.group_o(), k = s.depth();
  // Tiles overlap in the image, so a task owns one image.
  pool.Run(s.n, [&](int64_t n) {
    A* out = WriteRow(dx + n * image, image, ScratchSlot::kTile2);
    std::fill_n(out, image, A(0));
    for (int64_t first = n * pixels; first < (n + 1) * pixels; first += tile) {
      const int64_t end = std::min((n + 1) * pixels, first + tile), rows = end - first;
      A* unfolded = Scratch<A>(ScratchSlot::kTile0, rows * k);
      for (int64_t g = 0; g < s.groups; ++g) {
        GemmShape gemm{rows, k, o, Transpose::kNo, Transpose::kNo, 0, k, k};
        const A* in = ReadPixels(s, dy, g, first, end, &gemm.lda);
        Gemm(gemm, in, weight + g * o * k, Accumulate::kOverwrite, unfolded);
        Fold(s, unfolded, g, first, end, out);
      }
    }
    StoreRow(out, image, dx + n * image);
  });
}

int64_t Im2colSlices(const ConvShape& s) {
  constexpr int64_t kMost = 8;
  const int64_t tiles = (s.pixels_out() + TilePixels(s) - 1) / TilePixels(s);
  return std::clamp<int64_t>(tiles, 1, kMost);
}

template <class T>
void Im2colBwdWeight(ThreadPool& pool, const ConvShape& s, const T* dy, const T* x, Arithmetic<T>* partial,
                     Accumulate accumulate, Arithmetic<T>* dweight) {
  using A = Arithmetic<T>;
  const int64_t tile = TilePixels(s), pixels = s.pixels_out(), o = s.group_o(), k = s.depth(), size = s.o * k;
  const int64_t slices = Im2colSlices(s), tiles = (pixels + tile - 1) / tile;
  pool.Run(slices, [&](int64_t slice) {
    A* sum = slice == 0 ? dweight : partial + (slice - 1) * size;
    if (slice > 0 || accumulate == Accumulate::kOverwrite) std::fill_n(sum, size, A(0));
    for (int64_t t = tiles * slice / slices; t < tiles * (slice + 1) / slices; ++t) {
      const int64_t begin = t * tile, end = std::min(pixels, begin + tile), rows = end - begin;
      A* unfolded = Scratch<A>(ScratchSlot::kTile0, rows * k);
      for (int64_t g = 0; g < s.groups; ++g) {
        Unfold(s, x, g, begin, end, unfolded);
        GemmShape gemm{o, k, rows, Transpose::kYes, Transpose::kNo, 0, k, k};
        const A* in = ReadPixels(s, dy, g, begin, end, &gemm.lda);
        Gemm(gemm, in, unfolded, Accumulate::kAdd, sum + g * o * k);
      }
    }
  });
  pool.ParallelFor(size, 16 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < slices - 1; ++i)
      AddRow(dweight + begin, partial + i * size + begin, end - begin, dweight + begin);
  });
}

#define SHOAL_IM2COL(T)                                                                                           \
  template void Im2colFwd<T>(ThreadPool&, const ConvShape&, const T*, const Arithmetic<T>*, T*);                  \
  template void Im2colBwdInput<T>(ThreadPool&, const ConvShape&, const T*, const Arithmetic<T>*, T*);             \
  template void Im2colBwdWeight<T>(ThreadPool&, const ConvShape&, const T*, const T*, Arithmetic<T>*, Accumulate, \
                                   Arithmetic<T>*);
SHOAL_IM2COL(float)
SHOAL_IM2COL(double)
SHOAL_IM2COL(BFloat16)
#undef SHOAL_IM2COL

}  // namespace shoal::cpu
