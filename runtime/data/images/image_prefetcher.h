// ImagePrefetcher: batches of images, made in order by some threads and by the caller while it waits. Batches live in a
// ring of fixed memory; which thread makes an image changes nothing but time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "runtime/data/images/image_transform.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

struct ImageItem {
  int64_t index = 0, epoch = 0, sample_id = 0;
};

struct ImageBatch {
  std::vector<ImageItem> items;
  Tensor x;                          // room for the most images that a batch has
  std::vector<int32_t> labels;       // kLeftOut: the image could not be read and has no row of meaning
  std::vector<absl::Status> errors;  // of each image
  size_t made = 0;
};

class ImagePrefetcher {
 public:
  static constexpr int32_t kLeftOut = -1;
  // Lists the items of the next batch into an empty vector; none: the end. Called in order, never twice at a time.
  using List = absl::AnyInvocable<void(std::vector<ImageItem>&)>;
  // Writes one image and returns its label. Called by many threads.
  using Make = std::function<absl::StatusOr<int32_t>(const ImageItem&, ImageScratch&, float*)>;

  // `threads` may be 0. `ahead` >= 1 batches are made beyond the one that the caller holds.
  ImagePrefetcher(int threads, int ahead, const ImageShape& shape, Make make);
  ~ImagePrefetcher();

  // Forgets all batches and goes on with `list`, of at most `most_images` a batch. Memory is allocated here only.
  void Restart(List list, int64_t most_images);
  // The next batch, valid until the next call of either method; null at the end. The error is that of the batch's
  // first image that has one.
  absl::StatusOr<const ImageBatch*> Next();

 private:
  struct Claim {
    ImageBatch* batch = nullptr;
    size_t begin = 0, end = 0;
  };
  ImageBatch& Slot(int64_t batch) { return ring_[static_cast<size_t>(batch) % ring_.size()]; }
  bool TakeClaim(Claim& claim);  // under mutex_
  void Fulfil(const Claim& claim, ImageScratch& scratch);
  void Work();

  const ImageShape shape_;
  const Make make_;
  const size_t claim_images_;  // so many at a time that locking costs nothing beside them
  ImageScratch own_scratch_;   // of the caller's thread
  std::mutex mutex_;           // guards what follows
  std::condition_variable changed_;
  List list_;
  std::vector<ImageBatch> ring_;
  int64_t listed_ = 0, taken_ = 0;  // batches since Restart
  size_t claimed_ = 0;              // images of the last listed batch
  int in_flight_ = 0;               // claims
  enum class Phase : uint8_t { kIdle, kRunning, kEnded, kStopped } phase_ = Phase::kIdle;
  std::vector<std::thread> threads_;
};

}  // namespace shoal
