#include "launch/image_workload.h"

#include <algorithm>
#include <utility>

#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_data.h"
#include "runtime/data/images/image_loader.h"

namespace shoal {
namespace {

// Views `micro`'s images.
Batch ToBatch(const ImageMicroBatch& micro) {
  if (micro.labels.empty()) return {};
  auto layout = std::make_shared<SeqLayout>();
  const auto n = static_cast<int64_t>(micro.labels.size());
  layout->labels = Tensor::Zeros({n}, DType::kI32);
  layout->token_counters = Tensor::Zeros({n}, DType::kI64);
  std::copy(micro.labels.begin(), micro.labels.end(), layout->labels.data<int32_t>());
  for (int64_t i = 0; i < n; ++i) {
    layout->token_counters.data<int64_t>()[i] =
        static_cast<int64_t>(TokenCounter(micro.sample_ids[static_cast<size_t>(i)], 0));
  }
  return {micro.x, std::move(layout)};
}

class ImageWorkload : public Workload {
 public:
  ImageWorkload(const config::Job& job, std::unique_ptr<ImageData> data) : job_(job), data_(std::move(data)) {}

  Unit unit() const override { return Unit::kImages; }
  std::string Summary() const override { return data_->Summary(); }
  int64_t epoch_samples() const override { return data_->train().size(); }

  absl::Status Start(const WorkloadStart& start) override {
    start_ = start;
    const auto& images = job_.data().images();
    ImageLoaderOptions options{.seed = job_.seed(),
                               .rank = start.rank,
                               .ranks = start.ranks,
                               .prefetch_threads = images.prefetch_threads(),
                               .prefetch_steps = images.prefetch_steps()};
    if (job_.has_micro_batch()) options.micro_images = job_.micro_batch().images();
    if (job_.debug().overfit_one_batch()) options.repeat = ImageLoaderOptions::Repeat::kFirstBatch;
    SHOAL_ASSIGN_OR_RETURN(loader_, ImageLoader::Create(*data_, options, start.position, job_.global_batch().images()));
    return absl::OkStatus();
  }

  absl::StatusOr<StepInputs> Next(int64_t batch) override {
    SHOAL_ASSIGN_OR_RETURN(const StepImages* step, loader_->Next(batch));
    StepInputs inputs{step->next_position, step->global_images, {}, {}};
    for (const ImageMicroBatch& micro : step->micro) inputs.micro.push_back(ToBatch(micro));
    return inputs;
  }

  absl::Status ForHeldOut(absl::FunctionRef<absl::Status(const Batch&)> fn) override {
    const auto batches = HeldOutImages::Create(*data_, {.max_images = job_.eval().max_images(),
                                                        .rank = start_.rank,
                                                        .ranks = start_.ranks,
                                                        .prefetch_threads = job_.data().images().prefetch_threads()});
    for (;;) {
      SHOAL_ASSIGN_OR_RETURN(const ImageMicroBatch* micro, batches->Next());
      if (micro == nullptr) return absl::OkStatus();
      if (!micro->labels.empty()) SHOAL_RETURN_IF_ERROR(fn(ToBatch(*micro)));
    }
  }

 private:
  const config::Job job_;
  std::unique_ptr<ImageData> data_;
  std::unique_ptr<ImageLoader> loader_;
  WorkloadStart start_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Workload>> OpenImageWorkload(const config::Job& job) {
  SHOAL_ASSIGN_OR_RETURN(auto data, ImageData::Open(job.data().images()));
  if (data->classes() > job.model().resnet().classes()) {
    return absl::DataLossError(absl::StrCat("data.images has ", data->classes(), " classes, model.resnet.classes is ",
                                            job.model().resnet().classes()));
  }
  return std::make_unique<ImageWorkload>(job, std::move(data));
}

absl::StatusOr<ImageFacts> ReadImageFacts(const config::ImageDataConfig& config) {
  SHOAL_ASSIGN_OR_RETURN(const auto data, ImageData::Open(config));
  return ImageFacts{data->size(), data->channels(), data->classes()};
}

}  // namespace shoal
