#include "runtime/data/images/image_loader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_prefetcher.h"
#include "runtime/data/sampler.h"

namespace shoal {
namespace {

bool IsDamage(const absl::Status& status) { return absl::IsDataLoss(status) || absl::IsNotFound(status); }

ImageShape ModelShape(const ImageData& data) { return {data.size(), data.size(), data.channels()}; }

// With skip_bad_images the next readable image stands in, with the draws of the one that it stands in for.
absl::StatusOr<int32_t> MakeTraining(const ImageData& data, const ImageTransform& transform, const ImageItem& item,
                                     ImageScratch& scratch, float* x) {
  constexpr int64_t kTries = 100;
  const ImageDataset& train = data.train();
  absl::Status status;
  for (int64_t k = 0; k < std::min(kTries, train.size()); ++k) {
    const int64_t index = (item.index + k) % train.size();
    status = transform.Train(train, index, item.epoch, item.index, scratch, x);
    if (status.ok()) return train.label(index);
    if (!data.config().skip_bad_images() || !IsDamage(status)) return status;
    data.bad_images().Add(status);
  }
  return Annotate(status, absl::StrCat(std::min(kTries, train.size()), " images in a row cannot be read; the last"));
}

}  // namespace

ImageShare ShareImages(int64_t count, int index, int parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

struct ImageLoader::State {
  State(const ImageData& image_data, const ImageLoaderOptions& loader_options, int64_t first)
      : data(image_data),
        options(loader_options),
        transform(image_data.config(), loader_options.seed),
        position(first),
        prefetcher(loader_options.prefetch_threads, loader_options.prefetch_steps, ModelShape(image_data),
                   [this](const ImageItem& item, ImageScratch& scratch, float* x) {
                     return MakeTraining(data, transform, item, scratch, x);
                   }) {}

  ImageItem At(int64_t at) const {
    const int64_t n = data.train().size(), epoch = at / n;
    return {Permutation(options.seed, static_cast<uint64_t>(epoch), n)(at % n), epoch, at};
  }
  int64_t Following(int64_t at, int64_t images) const {
    return options.repeat == ImageLoaderOptions::Repeat::kFirstBatch ? at : at + images;
  }
  // Plans batches of `images` from `position` on.
  void Plan(int64_t images) {
    global_images = images;
    const ImageShare mine = ShareImages(images, options.rank, options.ranks);
    prefetcher.Restart(
        [this, mine, images, at = position](std::vector<ImageItem>& items) mutable {
          for (int64_t i = mine.begin; i < mine.end; ++i) items.push_back(At(at + i));
          at = Following(at, images);
        },
        mine.end - mine.begin);
  }

  const ImageData& data;
  const ImageLoaderOptions options;
  const ImageTransform transform;
  int64_t position;
  int64_t global_images = 0;
  StepImages step;
  ImagePrefetcher prefetcher;
};

ImageLoader::ImageLoader(std::unique_ptr<State> state) : state_(std::move(state)) {}
ImageLoader::~ImageLoader() = default;

absl::StatusOr<std::unique_ptr<ImageLoader>> ImageLoader::Create(const ImageData& data,
                                                                 const ImageLoaderOptions& options,
                                                                 int64_t first_position, int64_t global_images) {
  if (options.micro_images.has_value() && *options.micro_images < 1)
    return absl::InvalidArgumentError(
        absl::StrCat("micro_batch.images is ", *options.micro_images, "; it needs 1 or more"));
  auto loader = std::unique_ptr<ImageLoader>(new ImageLoader(std::make_unique<State>(data, options, first_position)));
  if (global_images >= options.ranks) loader->state_->Plan(global_images);
  return loader;
}

absl::StatusOr<const StepImages*> ImageLoader::Next(int64_t global_images) {
  State& state = *state_;
  const int ranks = state.options.ranks;
  if (global_images < ranks) {
    return absl::InvalidArgumentError(absl::StrCat("global_batch.images is ", global_images, " and the job has ", ranks,
                                                   " ranks; every rank needs an image: take at least ", ranks));
  }
  if (global_images != state.global_images) state.Plan(global_images);
  SHOAL_ASSIGN_OR_RETURN(const ImageBatch* batch, state.prefetcher.Next());
  StepImages& step = state.step;
  step.first_position = state.position;
  step.next_position = state.position = state.Following(state.position, global_images);
  step.global_images = global_images;
  const int64_t largest = (global_images + ranks - 1) / ranks, micro = state.options.micro_images.value_or(largest);
  const int parts = static_cast<int>((largest + micro - 1) / micro);
  step.micro.resize(static_cast<size_t>(parts));
  for (int part = 0; part < parts; ++part) {
    const auto [begin, end] = ShareImages(static_cast<int64_t>(batch->items.size()), part, parts);
    ImageMicroBatch& to = step.micro[part];
    to.x = batch->x.Rows(begin, end);
    to.labels.assign(batch->labels.begin() + begin, batch->labels.begin() + end);
    to.sample_ids.clear();
    for (int64_t i = begin; i < end; ++i) to.sample_ids.push_back(batch->items[i].sample_id);
  }
  return &step;
}

struct HeldOutImages::State {
  State(const ImageData& image_data, const HeldOutImagesOptions& options)
      : data(image_data),
        transform(image_data.config(), 0),
        prefetcher(options.prefetch_threads, options.prefetch_batches, ModelShape(image_data),
                   [this](const ImageItem& item, ImageScratch& scratch, float* x) { return Make(item, scratch, x); }) {
    const int64_t all = data.held_out().size();
    const int64_t images = options.max_images > 0 ? std::min(options.max_images, all) : all;
    const int64_t stride = options.batch_images * options.ranks;
    prefetcher.Restart(
        [=, size = options.batch_images,
         at = options.batch_images * options.rank](std::vector<ImageItem>& items) mutable {
          for (int64_t i = at; i < std::min(at + size, images); ++i) items.push_back({i, 0, i});
          at += stride;
        },
        options.batch_images);
  }

  absl::StatusOr<int32_t> Make(const ImageItem& item, ImageScratch& scratch, float* x) {
    const absl::Status status = transform.Evaluate(data.held_out(), item.index, scratch, x);
    if (status.ok()) return data.held_out().label(item.index);
    if (!data.config().skip_bad_images() || !IsDamage(status)) return status;
    data.bad_images().Add(status);
    return ImagePrefetcher::kLeftOut;
  }

  const ImageData& data;
  const ImageTransform transform;
  ImageMicroBatch batch;
  ImagePrefetcher prefetcher;
};

HeldOutImages::HeldOutImages(std::unique_ptr<State> state) : state_(std::move(state)) {}
HeldOutImages::~HeldOutImages() = default;

std::unique_ptr<HeldOutImages> HeldOutImages::Create(const ImageData& data, const HeldOutImagesOptions& options) {
  return std::unique_ptr<HeldOutImages>(new HeldOutImages(std::make_unique<State>(data, options)));
}

absl::StatusOr<const ImageMicroBatch*> HeldOutImages::Next() {
  SHOAL_ASSIGN_OR_RETURN(const ImageBatch* from, state_->prefetcher.Next());
  if (from == nullptr) return nullptr;
  ImageMicroBatch& to = state_->batch;
  to.labels.clear();
  to.sample_ids.clear();
  const int64_t row = ModelShape(state_->data).size();
  float* x = from->x.data<float>();
  for (size_t i = 0; i < from->items.size(); ++i) {
    if (from->labels[i] == ImagePrefetcher::kLeftOut) continue;
    // Rows behind one that was left out move up.
    if (const size_t at = to.labels.size(); at != i)
      std::copy_n(x + static_cast<int64_t>(i) * row, row, x + static_cast<int64_t>(at) * row);
    to.labels.push_back(from->labels[i]);
    to.sample_ids.push_back(from->items[i].sample_id);
  }
  to.x = from->x.Rows(0, static_cast<int64_t>(to.labels.size()));
  return &to;
}

}  // namespace shoal
