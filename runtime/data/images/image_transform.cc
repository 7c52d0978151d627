#include "runtime/data/images/image_transform.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Config = config::ImageDataConfig;

// The part of a shrunken image that `box` of the full one is.
CropBox Shrunk(const CropBox& box, const ImageShape& full, const ImageShape& shrunk) {
  const auto from = [](int at, int whole, int now) { return static_cast<int>(int64_t{at} * now / whole); };
  const auto to = [](int at, int whole, int now) { return static_cast<int>((int64_t{at} * now + whole - 1) / whole); };
  const int x = from(box.x, full.width, shrunk.width), y = from(box.y, full.height, shrunk.height);
  return {x, y, to(box.x + box.width, full.width, shrunk.width) - x,
          to(box.y + box.height, full.height, shrunk.height) - y};
}

void Flip(Image& image) {
  const int channels = image.channels();
  for (int y = 0; y < image.height(); ++y) {
    uint8_t *left = image.Row(y), *right = left + int64_t{image.width() - 1} * channels;
    for (; left < right; left += channels, right -= channels) std::swap_ranges(left, left + channels, right);
  }
}

// The square of `size` at (x, y), which may lie partly outside.
void CopyWindow(const ImageView& in, int x, int y, int size, const Fill& fill, Image& out) {
  const int channels = in.channels;
  out.Reshape({size, size, channels});
  const int first = std::clamp(-x, 0, size), last = std::clamp(in.width - x, first, size);
  const auto fill_to = [&](uint8_t* to, int pixels) {
    for (int i = 0; i < pixels; ++i, to += channels) std::copy_n(fill.data(), channels, to);
  };
  for (int row = 0; row < size; ++row) {
    uint8_t* to = out.Row(row);
    if (y + row < 0 || y + row >= in.height) {
      fill_to(to, size);
      continue;
    }
    fill_to(to, first);
    std::memcpy(to + int64_t{first} * channels, in.Row(y + row) + int64_t{x + first} * channels,
                static_cast<size_t>(last - first) * channels);
    fill_to(to + int64_t{last} * channels, size - last);
  }
}

// Where torchvision's CenterCrop begins: half to even.
int CenterStart(int extent, int size) { return static_cast<int>(std::nearbyint((extent - size) / 2.0)); }

}  // namespace

CropBox DrawCrop(ImageDraws& draws, int width, int height, const Config& config) {
  const double area = static_cast<double>(width) * height;
  const double least = std::log(config.aspect_min()), most = std::log(config.aspect_max());
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * draws.Between(config.area_min(), config.area_max());
    const double aspect = std::exp(draws.Between(least, most));
    const int w = static_cast<int>(std::lround(std::sqrt(target * aspect)));
    const int h = static_cast<int>(std::lround(std::sqrt(target / aspect)));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    const int x = draws.Below(width - w + 1);
    return {x, draws.Below(height - h + 1), w, h};
  }
  const double aspect = static_cast<double>(width) / height;
  int w = width, h = height;
  if (aspect < config.aspect_min()) h = std::clamp(static_cast<int>(std::lround(w / config.aspect_min())), 1, height);
  if (aspect > config.aspect_max()) w = std::clamp(static_cast<int>(std::lround(h * config.aspect_max())), 1, width);
  return {(width - w) / 2, (height - h) / 2, w, h};
}

absl::Status CheckImageFits(const ImageShape& shape, ImageUse use, const Config& config) {
  const bool padded = use == ImageUse::kTrain && config.crop() == Config::PAD;
  const bool cut = use == ImageUse::kEvaluate ? config.crop() != Config::NONE : config.crop() == Config::CENTER;
  const int shorter = std::min(shape.width, shape.height), size = config.size();
  if (padded && shorter + 2 * config.padding() < size) {
    return absl::DataLossError(absl::StrCat("is ", shape.width, " x ", shape.height,
                                            " pixels, with data.images.padding ", config.padding(),
                                            " on each side smaller than the crop (data.images.size) of ", size));
  }
  if (cut && config.eval_resize() == 0 && shorter < size) {
    return absl::DataLossError(absl::StrCat("is ", shape.width, " x ", shape.height,
                                            " pixels, smaller than the crop (data.images.size) of ", size,
                                            "; data.images.eval_resize would resize it first"));
  }
  return absl::OkStatus();
}

ImageTransform::ImageTransform(const Config& config, uint64_t seed)
    : config_(config), seed_(seed), size_(config.size()), channels_(config.channels()) {
  for (int c = 0; c < channels_; ++c) {
    fill_[c] = static_cast<uint8_t>(config.has_fill() ? config.fill() : std::lround(config.mean(c) * 255));
    for (int value = 0; value < 256; ++value)
      normalised_[c][value] = static_cast<float>((value / 255.0 - config.mean(c)) / config.std(c));
  }
  if (config.has_randaugment()) rand_augment_.emplace(config.randaugment(), fill_);
}

absl::Status ImageTransform::Train(const ImageDataset& data, int64_t index, int64_t epoch, int64_t drawn_as,
                                   ImageScratch& scratch, float* x) const {
  ImageDraws draws(seed_, epoch, drawn_as);
  switch (config_.crop()) {
    case Config::RANDOM_RESIZED:
      SHOAL_RETURN_IF_ERROR(RandomResized(data, index, draws, scratch));
      break;
    case Config::PAD:
      SHOAL_RETURN_IF_ERROR(Padded(data, index, draws, scratch));
      break;
    default:
      SHOAL_RETURN_IF_ERROR(Plain(data, index, scratch));
  }
  if (config_.flip() && draws.Coin()) Flip(scratch.pixels);
  if (rand_augment_.has_value()) rand_augment_->Apply(draws, scratch.pixels, scratch.spare);
  Normalise(scratch.pixels, x);
  return absl::OkStatus();
}

absl::Status ImageTransform::Evaluate(const ImageDataset& data, int64_t index, ImageScratch& scratch, float* x) const {
  SHOAL_RETURN_IF_ERROR(Plain(data, index, scratch));
  Normalise(scratch.pixels, x);
  return absl::OkStatus();
}

absl::Status ImageTransform::Plain(const ImageDataset& data, int64_t index, ImageScratch& scratch) const {
  return config_.crop() == Config::NONE ? Whole(data, index, scratch) : Centered(data, index, scratch);
}

absl::Status ImageTransform::RandomResized(const ImageDataset& data, int64_t index, ImageDraws& draws,
                                           ImageScratch& scratch) const {
  const ImageShape full = data.shape(index);
  CropBox box = DrawCrop(draws, full.width, full.height, config_);
  const double least_scale = std::min(1.0, static_cast<double>(size_) / std::min(box.width, box.height));
  SHOAL_RETURN_IF_ERROR(data.Decode(index, channels_, least_scale, scratch.decode, scratch.decoded));
  box = Shrunk(box, full, scratch.decoded.shape());
  scratch.pixels.Reshape({size_, size_, channels_});
  scratch.resizer.Resize(scratch.decoded.view().Part(box.x, box.y, box.width, box.height),
                         {size_, size_, 0, 0, size_, size_}, scratch.pixels.data());
  return absl::OkStatus();
}

absl::Status ImageTransform::Padded(const ImageDataset& data, int64_t index, ImageDraws& draws,
                                    ImageScratch& scratch) const {
  SHOAL_RETURN_IF_ERROR(data.Decode(index, channels_, 1, scratch.decode, scratch.decoded));
  const int padding = config_.padding();
  const int x = draws.Below(scratch.decoded.width() + 2 * padding - size_ + 1) - padding;
  const int y = draws.Below(scratch.decoded.height() + 2 * padding - size_ + 1) - padding;
  CopyWindow(scratch.decoded.view(), x, y, size_, fill_, scratch.pixels);
  return absl::OkStatus();
}

absl::Status ImageTransform::Whole(const ImageDataset& data, int64_t index, ImageScratch& scratch) const {
  const ImageShape full = data.shape(index);
  const double least_scale = std::min(1.0, static_cast<double>(size_) / std::min(full.width, full.height));
  SHOAL_RETURN_IF_ERROR(data.Decode(index, channels_, least_scale, scratch.decode, scratch.decoded));
  scratch.pixels.Reshape({size_, size_, channels_});
  scratch.resizer.Resize(scratch.decoded.view(), {size_, size_, 0, 0, size_, size_}, scratch.pixels.data());
  return absl::OkStatus();
}

absl::Status ImageTransform::Centered(const ImageDataset& data, int64_t index, ImageScratch& scratch) const {
  const ImageShape full = data.shape(index);
  const int resize = config_.eval_resize(), shorter = std::min(full.width, full.height);
  if (resize == 0) {
    SHOAL_RETURN_IF_ERROR(data.Decode(index, channels_, 1, scratch.decode, scratch.decoded));
    CopyWindow(scratch.decoded.view(), CenterStart(full.width, size_), CenterStart(full.height, size_), size_, fill_,
               scratch.pixels);
    return absl::OkStatus();
  }
  const double least_scale = std::min(1.0, static_cast<double>(resize) / shorter);
  SHOAL_RETURN_IF_ERROR(data.Decode(index, channels_, least_scale, scratch.decode, scratch.decoded));
  const int width = static_cast<int>(int64_t{resize} * full.width / shorter);
  const int height = static_cast<int>(int64_t{resize} * full.height / shorter);
  scratch.pixels.Reshape({size_, size_, channels_});
  scratch.resizer.Resize(scratch.decoded.view(),
                         {width, height, CenterStart(width, size_), CenterStart(height, size_), size_, size_},
                         scratch.pixels.data());
  return absl::OkStatus();
}

void ImageTransform::Normalise(const Image& pixels, float* x) const {
  const uint8_t* in = pixels.data();
  const int64_t size = pixels.size();
  if (channels_ == 1) {
    for (int64_t i = 0; i < size; ++i) x[i] = normalised_[0][in[i]];
    return;
  }
  for (int64_t i = 0; i < size; i += 3) {
    for (int c = 0; c < 3; ++c) x[i + c] = normalised_[c][in[i + c]];
  }
}

}  // namespace shoal
