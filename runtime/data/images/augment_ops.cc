#include "runtime/data/images/augment_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

using Table = std::array<uint8_t, 256>;
using Tables = std::array<Table, 3>;
using Histogram = std::array<int64_t, 256>;

uint8_t Clipped(double value) { return static_cast<uint8_t>(std::clamp(value, 0.0, 255.0)); }

// ImageEnhance's blend: from the degenerate image towards, and beyond, the image itself.
uint8_t Blended(int degenerate, int pixel, float factor) {
  const float value = static_cast<float>(degenerate) + factor * static_cast<float>(pixel - degenerate);
  return static_cast<uint8_t>(static_cast<int>(std::clamp(value, 0.0f, 255.0f)));
}

template <class F>
Table MakeTable(F value) {
  Table table;
  for (int i = 0; i < 256; ++i) table[i] = value(i);
  return table;
}

void MapAll(const Table& table, Image& image) {
  uint8_t* p = image.data();
  for (int64_t i = 0; i < image.size(); ++i) p[i] = table[p[i]];
}

void MapChannels(const Tables& tables, Image& image) {
  if (image.channels() == 1) return MapAll(tables[0], image);
  uint8_t* p = image.data();
  for (int64_t i = 0; i < image.size(); i += 3) {
    p[i] = tables[0][p[i]];
    p[i + 1] = tables[1][p[i + 1]];
    p[i + 2] = tables[2][p[i + 2]];
  }
}

std::array<Histogram, 3> Histograms(const Image& image) {
  std::array<Histogram, 3> counts = {};
  const uint8_t* p = image.data();
  const int channels = image.channels();
  for (int64_t i = 0; i < image.size(); i += channels) {
    for (int c = 0; c < channels; ++c) ++counts[c][p[i + c]];
  }
  return counts;
}

Table AutoContrastTable(const Histogram& counts) {
  int least = 0, most = 255;
  while (least < 255 && counts[least] == 0) ++least;
  while (most > 0 && counts[most] == 0) --most;
  const double scale = most > least ? 255.0 / (most - least) : 1, offset = most > least ? -least * scale : 0;
  return MakeTable([&](int i) { return Clipped(i * scale + offset); });
}

Table EqualizeTable(const Histogram& counts) {
  int64_t total = 0, greatest = 0, used = 0;
  for (const int64_t count : counts) {
    if (count == 0) continue;
    total += count;
    greatest = count;
    ++used;
  }
  const int64_t step = (total - greatest) / 255;
  if (used <= 1 || step == 0) return MakeTable([](int i) { return static_cast<uint8_t>(i); });
  int64_t before = step / 2;
  return MakeTable([&](int i) {
    const int64_t value = before / step;
    before += counts[i];
    return static_cast<uint8_t>(std::min<int64_t>(value, 255));
  });
}

template <class F>
void MapByHistogram(F table_of, Image& image) {
  const auto counts = Histograms(image);
  Tables tables;
  for (int c = 0; c < image.channels(); ++c) tables[c] = table_of(counts[c]);
  MapChannels(tables, image);
}

int LumaOf(const Image& image, int64_t i) {
  const uint8_t* p = image.data() + i * image.channels();
  return image.channels() == 1 ? p[0] : Luma(p[0], p[1], p[2]);
}

int MeanLuma(const Image& image) {
  const int64_t pixels = int64_t{image.width()} * image.height();
  int64_t sum = 0;
  for (int64_t i = 0; i < pixels; ++i) sum += LumaOf(image, i);
  return static_cast<int>(static_cast<double>(sum) / static_cast<double>(pixels) + 0.5);
}

void Color(float factor, Image& image) {
  if (image.channels() == 1) return;
  uint8_t* p = image.data();
  for (int64_t i = 0; i < image.size(); i += 3) {
    const int grey = Luma(p[i], p[i + 1], p[i + 2]);
    for (int c = 0; c < 3; ++c) p[i + c] = Blended(grey, p[i + c], factor);
  }
}

// The degenerate image is smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels have no neighbours and stay.
void Sharpness(float factor, Image& image, Image& spare) {
  const int channels = image.channels();
  const int64_t row = int64_t{image.width()} * channels;
  spare.Reshape(image.shape());
  std::memcpy(spare.data(), image.data(), static_cast<size_t>(image.size()));
  for (int y = 1; y + 1 < image.height(); ++y) {
    const uint8_t *in = image.Row(y), *above = in - row, *below = in + row;
    uint8_t* out = spare.Row(y);
    for (int64_t i = channels; i < row - channels; ++i) {
      const int sum = above[i - channels] + above[i] + above[i + channels] + in[i - channels] + 5 * in[i] +
                      in[i + channels] + below[i - channels] + below[i] + below[i + channels];
      // No sum lies half-way between two thirteenths, so this is the exactly rounded quotient.
      const int smooth = static_cast<int>(static_cast<float>(sum) * (1.0f / 13) + 0.5f);
      out[i] = Blended(smooth, in[i], factor);
    }
  }
  std::swap(image, spare);
}

// Input position of output pixel (x, y): (a x + b y + c, d x + e y + f), pixel centres at halves.
struct Affine {
  double a = 1, b = 0, c = 0, d = 0, e = 1, f = 0;
};

int32_t Fixed(double value) { return static_cast<int32_t>(std::floor(value * 65536 + 0.5)); }

template <int kChannels>
void Warp(const Affine& m, const Fill& fill, const Image& in, Image& out) {
  out.Reshape(in.shape());
  const int32_t dx_x = Fixed(m.a), dx_y = Fixed(m.b), dy_x = Fixed(m.d), dy_y = Fixed(m.e);
  int32_t row_x = Fixed(m.c + m.a * 0.5 + m.b * 0.5), row_y = Fixed(m.f + m.d * 0.5 + m.e * 0.5);
  const auto width = static_cast<uint32_t>(in.width()), height = static_cast<uint32_t>(in.height());
  const uint8_t* pixels = in.data();
  uint8_t* to = out.data();
  for (uint32_t y = 0; y < height; ++y, row_x += dx_y, row_y += dy_y) {
    int32_t at_x = row_x, at_y = row_y;
    for (uint32_t x = 0; x < width; ++x, at_x += dx_x, at_y += dy_x, to += kChannels) {
      // A negative position is a huge unsigned one.
      const auto from_x = static_cast<uint32_t>(at_x >> 16), from_y = static_cast<uint32_t>(at_y >> 16);
      const bool inside = from_x < width && from_y < height;
      const uint8_t* from = inside ? pixels + (static_cast<size_t>(from_y) * width + from_x) * kChannels : fill.data();
      for (int c = 0; c < kChannels; ++c) to[c] = from[c];
    }
  }
}

void Transform(const Affine& m, const Fill& fill, Image& image, Image& spare) {
  const auto warp = image.channels() == 1 ? Warp<1> : Warp<3>;
  warp(m, fill, image, spare);
  std::swap(image, spare);
}

Affine Rotation(double degrees, const Image& image) {
  const double angle = -degrees * std::numbers::pi / 180, cosine = std::cos(angle), sine = std::sin(angle);
  const double center_x = image.width() / 2.0, center_y = image.height() / 2.0;
  return {cosine, sine,   center_x - cosine * center_x - sine * center_y,
          -sine,  cosine, center_y + sine * center_x - cosine * center_y};
}

}  // namespace

void ApplyAugment(AugmentOp op, double argument, const Fill& fill, Image& image, Image& spare) {
  const auto factor = static_cast<float>(argument);
  switch (op) {
    case AugmentOp::kIdentity:
      return;
    case AugmentOp::kAutoContrast:
      return MapByHistogram(AutoContrastTable, image);
    case AugmentOp::kEqualize:
      return MapByHistogram(EqualizeTable, image);
    case AugmentOp::kRotate:
      return Transform(Rotation(argument, image), fill, image, spare);
    case AugmentOp::kSolarize:
      return MapAll(MakeTable([&](int i) { return static_cast<uint8_t>(i < argument ? i : 255 - i); }), image);
    case AugmentOp::kColor:
      return Color(factor, image);
    case AugmentOp::kPosterize: {
      const int mask = ~((1 << (8 - static_cast<int>(argument))) - 1);
      return MapAll(MakeTable([&](int i) { return static_cast<uint8_t>(i & mask); }), image);
    }
    case AugmentOp::kContrast: {
      const int mean = MeanLuma(image);
      return MapAll(MakeTable([&](int i) { return Blended(mean, i, factor); }), image);
    }
    case AugmentOp::kBrightness:
      return MapAll(MakeTable([&](int i) { return Blended(0, i, factor); }), image);
    case AugmentOp::kSharpness:
      return Sharpness(factor, image, spare);
    case AugmentOp::kShearX:
      return Transform({.b = argument}, fill, image, spare);
    case AugmentOp::kShearY:
      return Transform({.d = argument}, fill, image, spare);
    case AugmentOp::kTranslateX:
      return Transform({.c = argument}, fill, image, spare);
    case AugmentOp::kTranslateY:
      return Transform({.f = argument}, fill, image, spare);
  }
}

}  // namespace shoal
