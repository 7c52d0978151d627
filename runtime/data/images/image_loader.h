// ImageLoader: the training images of one rank, made ahead by threads. A batch depends only on data, options and
// position: rank r of N takes the r-th contiguous share of the global batch, and every image is cropped, flipped and
// augmented by draws of (seed, epoch, index), so any number of ranks, threads and steps ahead gives the same images.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/images/image_data.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

struct ImageMicroBatch {
  Tensor x;                         // [N, H, W, C] f32, normalised; a view of the loader's memory
  std::vector<int32_t> labels;      // N
  std::vector<int64_t> sample_ids;  // N: global sample position over the whole run; held out: index in that set
};

struct StepImages {
  int64_t first_position = 0, next_position = 0;  // of the sampler
  int64_t global_images = 0;                      // over all ranks
  std::vector<ImageMicroBatch> micro;             // this rank's, as many on every rank; some may be empty
};

struct ImageLoaderOptions {
  std::optional<int64_t> micro_images = std::nullopt;  // most per rank and micro-batch; none: one micro-batch per step
  uint64_t seed = 1;
  int rank = 0, ranks = 1;
  int prefetch_threads = 1;  // 0: Next makes the images itself
  int prefetch_steps = 3;
  enum class Repeat : uint8_t { kNo, kFirstBatch } repeat = Repeat::kNo;  // kFirstBatch: the position never moves
};

// Images [begin, end) of `count` that part `index` of `parts` takes: contiguous, sizes differ by one at most.
struct ImageShare {
  int64_t begin = 0, end = 0;
};
ImageShare ShareImages(int64_t count, int index, int parts);

// Not thread-safe: one caller. No memory is allocated from one step to the next while the batch size stays.
class ImageLoader {
 public:
  // `data` outlives it. `global_images` is what is made ahead first.
  static absl::StatusOr<std::unique_ptr<ImageLoader>> Create(const ImageData& data, const ImageLoaderOptions& options,
                                                             int64_t first_position, int64_t global_images);
  ~ImageLoader();

  // The next global_images images of the run, this rank's share of them. The result is owned by the loader and valid
  // until the next call. A number other than the last one discards what was made ahead, so the step after a change of
  // batch size waits for its images; the images themselves are the same. While images are missing the caller helps to
  // make them.
  // DataLoss: an image that cannot be read; with skip_bad_images the next readable one by index takes its place.
  // InvalidArgument: fewer images than ranks.
  absl::StatusOr<const StepImages*> Next(int64_t global_images);

 private:
  struct State;
  explicit ImageLoader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct HeldOutImagesOptions {
  int64_t batch_images = 64;
  int64_t max_images = 0;  // the first ones; 0: all
  int rank = 0, ranks = 1;
  int prefetch_threads = 1, prefetch_batches = 3;
};

// This rank's held-out batches: batch b of the whole goes to rank b % ranks, so all ranks together take every image
// once, in the same batches whatever their number; ranks may differ by one in their number of batches.
class HeldOutImages {
 public:
  // `data` outlives it.
  static std::unique_ptr<HeldOutImages> Create(const ImageData& data, const HeldOutImagesOptions& options);
  ~HeldOutImages();

  // Null at the end. Valid until the next call. With skip_bad_images an unreadable image is missing from its batch.
  absl::StatusOr<const ImageMicroBatch*> Next();

 private:
  struct State;
  explicit HeldOutImages(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace shoal
