#include "runtime/ops/cpu/conv_winograd.h"

#include <vector>

#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/scratch.h"
#include "runtime/ops/cpu/winograd_tiles.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;
using ops::Direction;

constexpr int64_t kBlock = kWidestPanel;  // outputs of a task

int64_t Blocks(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

// A filter bank from `inputs` to `outputs` channels, transformed: for each panel of outputs, for each of the 16 values,
// [inputs, panel].
struct Bank {
  int64_t inputs = 0, outputs = 0, panel = 0;
  float* values = nullptr;
  int64_t stride() const { return inputs * panel + kStreamPad; }
  float* Panel(int64_t first_output) const { return values + first_output / panel * kTileValues * stride(); }
};

// The transformed weight: as it is for the forward; inputs and outputs exchanged and taps turned round for the
// backward.
void TransformWeight(ThreadPool& pool, const float* weight, Direction direction, const Bank& bank) {
  constexpr int64_t kInputs = 64, kTaps = 9;
  const auto& kernels = ConvKernels::Get();
  const int64_t panels = (bank.outputs + bank.panel - 1) / bank.panel, chunks = (bank.inputs + kInputs - 1) / kInputs;
  pool.Run(panels * chunks, [&](int64_t i) {
    const int64_t first = i / chunks * bank.panel, columns = std::min(bank.panel, bank.outputs - first);
    const int64_t input = i % chunks * kInputs, count = std::min(kInputs, bank.inputs - input);
    float* taps = Scratch<float>(ScratchSlot::kTile0, kTaps * count * bank.panel);  // [taps, count, panel]
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      float* to = taps + tap * count * bank.panel;
      if (direction == Direction::kForward) {
        kernels.transpose(weight + (first * kTaps + tap) * bank.inputs + input, kTaps * bank.inputs, columns, count,
                          to);
        continue;
      }
      for (int64_t k = 0; k < count; ++k, to += bank.panel) {
        const float* from = weight + ((input + k) * kTaps + kTaps - 1 - tap) * bank.outputs + first;
        std::copy_n(from, columns, to);
        std::fill(to + columns, to + bank.panel, 0.0f);
      }
    }
    const int64_t n = count * bank.panel;
    kernels.winograd_weight(taps, n, n, bank.Panel(first) + input * bank.panel, bank.stride());
  });
}

// y [tiles' image, outputs] = x [., inputs] filtered by the bank.
void Filter(ThreadPool& pool, const WinogradTiles& tiles, const Bank& bank, const float* x, float* y) {
  constexpr int64_t kTasks = 16;
  if (tiles.tiles() == 0) return;
  const auto& kernels = ConvKernels::Get();
  const int64_t pieces = tiles.pieces(), blocks = Blocks(bank.outputs);
  // Few pieces: outputs are shared out too, at the price of transforming the pixels again.
  const int64_t shares = std::clamp<int64_t>(kTasks / pieces, 1, blocks);
  pool.Run(pieces * shares, [&](int64_t task) {
    const int64_t piece = task / shares, share = task % shares;
    const int64_t begin = tiles.begin(piece), count = tiles.begin(piece + 1) - begin;
    const int64_t in_stride = count * bank.inputs + kStreamPad, out_stride = count * bank.panel + kStreamPad;
    float* in = Scratch<float>(ScratchSlot::kTile0, kTileValues * in_stride);
    float* out = Scratch<float>(ScratchSlot::kTile1, kTileValues * out_stride);
    float* zeros = Scratch<float>(ScratchSlot::kRow0, bank.inputs);
    float* beyond = Scratch<float>(ScratchSlot::kRow1, bank.panel);
    std::fill_n(zeros, bank.inputs, 0.0f);
    int64_t in_at[kPieceTiles], out_at[kPieceTiles];
    for (int64_t t = 0; t < count; ++t) {
      const float* pixels[kTileValues];
      tiles.Inputs(begin + t, x, bank.inputs, zeros, pixels);
      kernels.winograd_input(pixels, bank.inputs, in + t * bank.inputs, in_stride);
      in_at[t] = t * bank.inputs;
      out_at[t] = t * bank.panel;
    }
    const ProductRun run{0, 0, bank.inputs};
    const int64_t last = std::min(bank.outputs, blocks * (share + 1) / shares * kBlock);
    for (int64_t first = blocks * share / shares * kBlock; first < last; first += bank.panel) {
      for (int64_t v = 0; v < kTileValues; ++v) {
        const RowTable table{in + v * in_stride, in_at, out + v * out_stride, out_at, count};
        kernels.rows(table, {&run, 1}, bank.Panel(first) + v * bank.stride(), bank.panel, Accumulate::kOverwrite);
      }
      const int64_t columns = std::min(bank.panel, last - first);
      for (int64_t t = 0; t < count; ++t) {
        float* pixels[4];
        tiles.Outputs(begin + t, y + first, bank.outputs, beyond, pixels);
        kernels.winograd_output(out + t * bank.panel, out_stride, columns, pixels);
      }
    }
  });
}

}  // namespace

bool WinogradServes(const ConvShape& s) {
  constexpr int64_t kLeast = 16;  // channels: a vector's worth
  return s.kh == 3 && s.kw == 3 && s.stride == 1 && s.groups == 1 && s.padding <= 2 && s.c >= kLeast && s.o >= kLeast;
}

bool WinogradPays(const ConvShape& s) {
  // In products per pair of channels: what transforms cost, measured.
  constexpr double kInput = 50, kOutput = 32, kWeight = 150, kMargin = 1.05;
  double down = 0, across = 0;
  for (int64_t p = 0; p < s.p; ++p) {
    const TapRange taps = ValidTaps(p, s.h, s.kh, s);
    down += static_cast<double>(taps.end - taps.begin);
  }
  for (int64_t q = 0; q < s.q; ++q) {
    const TapRange taps = ValidTaps(q, s.w, s.kw, s);
    across += static_cast<double>(taps.end - taps.begin);
  }
  const double direct = static_cast<double>(s.n) * down * across;
  const auto tiles = static_cast<double>(s.n * ((s.p + 1) / 2) * ((s.q + 1) / 2));
  const double each = 16 + kInput / static_cast<double>(s.o) + kOutput / static_cast<double>(s.c);
  return kMargin * (tiles * each + kWeight) < direct;
}

int64_t WinogradWeightSize(int64_t outputs, int64_t inputs) {
  // The padding of streams for the narrowest panel, of two columns.
  return kTileValues * Blocks(outputs) * kBlock * (inputs + kStreamPad / 2);
}

void WinogradFwd(ThreadPool& pool, const ConvShape& s, const float* x, const float* weight, float* transformed,
                 float* y) {
  const Bank bank{s.c, s.o, ConvKernels::Get().panel, transformed};
  TransformWeight(pool, weight, Direction::kForward, bank);
  Filter(pool, WinogradTiles(s.n, s.h, s.w, s.p, s.q, s.padding), bank, x, y);
}

void WinogradBwdInput(ThreadPool& pool, const ConvShape& s, const float* dy, const float* weight, float* transformed,
                      float* dx) {
  const Bank bank{s.o, s.c, ConvKernels::Get().panel, transformed};
  TransformWeight(pool, weight, Direction::kBackward, bank);
  Filter(pool, WinogradTiles(s.n, s.p, s.q, s.h, s.w, 2 - s.padding), bank, dy, dx);
}

}  // namespace shoal::cpu
