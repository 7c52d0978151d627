#include "runtime/data/images/image_prefetcher.h"

#include <algorithm>

namespace shoal {
namespace {

constexpr int64_t kClaimPixels = 8192;

}  // namespace

ImagePrefetcher::ImagePrefetcher(int threads, int ahead, const ImageShape& shape, Make make)
    : shape_(shape),
      make_(std::move(make)),
      claim_images_(static_cast<size_t>(std::max<int64_t>(1, kClaimPixels / (int64_t{shape.width} * shape.height)))),
      ring_(static_cast<size_t>(ahead) + 1) {
  for (int t = 0; t < threads; ++t) threads_.emplace_back([this] { Work(); });
}

ImagePrefetcher::~ImagePrefetcher() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    phase_ = Phase::kStopped;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ImagePrefetcher::Restart(List list, int64_t most_images) {
  std::unique_lock<std::mutex> lock(mutex_);
  phase_ = Phase::kIdle;
  while (in_flight_ > 0) changed_.wait(lock);
  for (ImageBatch& batch : ring_) {
    if (!batch.x.defined() || batch.x.dim(0) < most_images)
      batch.x = Tensor::Zeros({most_images, shape_.height, shape_.width, shape_.channels}, DType::kF32);
    batch.items.reserve(static_cast<size_t>(most_images));
    batch.labels.reserve(static_cast<size_t>(most_images));
    batch.errors.reserve(static_cast<size_t>(most_images));
  }
  list_ = std::move(list);
  listed_ = taken_ = 0;
  claimed_ = 0;
  phase_ = Phase::kRunning;
  changed_.notify_all();
}

bool ImagePrefetcher::TakeClaim(Claim& claim) {
  if (phase_ != Phase::kRunning) return false;
  if (listed_ == 0 || claimed_ == Slot(listed_ - 1).items.size()) {
    // The slot's former batch must be older than the one that the caller holds, which is taken_ - 1.
    if (listed_ - static_cast<int64_t>(ring_.size()) >= taken_ - 1) return false;
    ImageBatch& next = Slot(listed_);
    next.items.clear();
    list_(next.items);
    if (next.items.empty()) {
      phase_ = Phase::kEnded;
      changed_.notify_all();
      return false;
    }
    next.labels.assign(next.items.size(), 0);
    next.errors.assign(next.items.size(), absl::OkStatus());
    next.made = 0;
    ++listed_;
    claimed_ = 0;
  }
  ImageBatch& batch = Slot(listed_ - 1);
  claim = {&batch, claimed_, std::min(claimed_ + claim_images_, batch.items.size())};
  claimed_ = claim.end;
  ++in_flight_;
  return true;
}

void ImagePrefetcher::Fulfil(const Claim& claim, ImageScratch& scratch) {
  ImageBatch& batch = *claim.batch;
  for (size_t i = claim.begin; i < claim.end; ++i) {
    auto label = make_(batch.items[i], scratch, batch.x.data<float>() + static_cast<int64_t>(i) * shape_.size());
    if (label.ok())
      batch.labels[i] = *label;
    else
      batch.errors[i] = label.status();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  batch.made += claim.end - claim.begin;
  --in_flight_;
  if (batch.made == batch.items.size() || in_flight_ == 0) changed_.notify_all();
}

void ImagePrefetcher::Work() {
  ImageScratch scratch;
  for (;;) {
    Claim claim;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while (phase_ != Phase::kStopped && !TakeClaim(claim)) changed_.wait(lock);
      if (phase_ == Phase::kStopped) break;
    }
    Fulfil(claim, scratch);
  }
}

absl::StatusOr<const ImageBatch*> ImagePrefetcher::Next() {
  int64_t wanted = 0;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    wanted = taken_++;
    changed_.notify_all();
  }
  for (;;) {
    Claim claim;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      for (;;) {
        if (wanted < listed_ && Slot(wanted).made == Slot(wanted).items.size()) {
          const ImageBatch& batch = Slot(wanted);
          for (const absl::Status& error : batch.errors) {
            if (!error.ok()) return error;
          }
          return &batch;
        }
        if (wanted >= listed_ && phase_ != Phase::kRunning) return nullptr;
        // Batches further ahead are the threads' business.
        const bool missing = listed_ <= wanted || (listed_ - 1 == wanted && claimed_ < Slot(wanted).items.size());
        if (missing && TakeClaim(claim)) break;
        if (phase_ == Phase::kRunning || wanted < listed_) changed_.wait(lock);
      }
    }
    Fulfil(claim, own_scratch_);
  }
}

}  // namespace shoal
