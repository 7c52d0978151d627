#include "launch/workload.h"

#include <algorithm>
#include <optional>

#include "launch/image_workload.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/data/training_data.h"

namespace shoal {
namespace {

Tensor Int32Tensor(const std::vector<int32_t>& values) {
  Tensor out = Tensor::Zeros({static_cast<int64_t>(values.size())}, DType::kI32);
  std::copy(values.begin(), values.end(), out.data<int32_t>());
  return out;
}

class TextWorkload : public Workload {
 public:
  TextWorkload(const config::Job& job, std::unique_ptr<TrainingData> data) : job_(job), data_(std::move(data)) {}

  Unit unit() const override { return Unit::kTokens; }
  std::string Summary() const override { return data_->Summary(); }
  int64_t epoch_samples() const override { return data_->epoch_samples(); }

  absl::Status Start(const WorkloadStart& start) override {
    LoaderOptions options{.global_batch = job_.global_batch(),
                          .micro_batch = std::nullopt,
                          .seed = job_.seed(),
                          .rank = start.rank,
                          .ranks = start.ranks,
                          .prefetch_steps = job_.data().prefetch_steps()};
    if (job_.has_micro_batch()) options.micro_batch = job_.micro_batch();
    if (job_.debug().overfit_one_batch()) options.repeat = LoaderOptions::Repeat::kFirstBatch;
    SHOAL_ASSIGN_OR_RETURN(loader_, Loader::Create(*data_, options, start.position));
    held_out_ = HeldOutBatches(*data_, job_.eval().max_tokens(), std::max<int64_t>(data_->longest(), 4096), start.rank,
                               start.ranks);
    return absl::OkStatus();
  }

  absl::StatusOr<StepInputs> Next(int64_t size) override {
    StepBatch batch = loader_->Next(size);
    StepInputs inputs{batch.next_position, batch.global_tokens, std::move(batch.lengths), {}};
    for (const MicroBatch& micro : batch.micro) inputs.micro.push_back(micro.tokens.empty() ? Batch() : ToBatch(micro));
    return inputs;
  }

  absl::Status ForHeldOut(absl::FunctionRef<absl::Status(const Batch&)> fn) override {
    for (const MicroBatch& micro : held_out_) SHOAL_RETURN_IF_ERROR(fn(ToBatch(micro)));
    return absl::OkStatus();
  }

 private:
  const config::Job job_;
  std::unique_ptr<TrainingData> data_;
  std::unique_ptr<Loader> loader_;
  std::vector<MicroBatch> held_out_;
};

// cu_seqlens of `tokens` tokens in sequences of `longest`.
std::vector<int32_t> Sequences(int64_t tokens, int64_t longest) {
  std::vector<int32_t> cu = {0};
  while (cu.back() < tokens) cu.push_back(static_cast<int32_t>(std::min<int64_t>(tokens, cu.back() + longest)));
  return cu;
}

// Tokens of a batch of this size.
int64_t Tokens(const config::Size& size, int64_t longest) {
  return size.has_tokens() ? size.tokens() : size.sequences() * longest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Workload>> OpenWorkload(const config::Job& job) {
  if (job.model().has_resnet()) return OpenImageWorkload(job);
  SHOAL_ASSIGN_OR_RETURN(auto data, TrainingData::Open(job.data(), job.model().transformer().vocabulary()));
  return std::make_unique<TextWorkload>(job, std::move(data));
}

Batch ToBatch(const MicroBatch& micro) {
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = micro.cu_seqlens;
  layout->positions = Int32Tensor(micro.positions);
  layout->labels = Int32Tensor(micro.labels);
  layout->max_len = micro.max_len;
  layout->token_counters = Tensor::Zeros({static_cast<int64_t>(micro.tokens.size())}, DType::kI64);
  int64_t* counters = layout->token_counters.data<int64_t>();
  for (size_t s = 0; s + 1 < micro.cu_seqlens.size(); ++s) {
    for (int32_t t = micro.cu_seqlens[s]; t < micro.cu_seqlens[s + 1]; ++t)
      counters[t] = static_cast<int64_t>(TokenCounter(micro.sample_ids[s], t - micro.cu_seqlens[s]));
  }
  return Batch{Int32Tensor(micro.tokens), std::move(layout)};
}

BatchShape ShapeOf(const Batch& batch) {
  const Shape& shape = batch.x.shape();
  return batch.x.rank() == 4 ? BatchShape{{}, {shape.begin(), shape.end()}} : BatchShape{batch.layout->cu_seqlens, {}};
}

Batch OnMeta(const BatchShape& shape) {
  auto layout = std::make_shared<SeqLayout>();
  const bool text = shape.images.empty();
  layout->cu_seqlens = shape.cu_seqlens;
  const int64_t rows = text ? layout->tokens() : shape.images[0];
  layout->positions = Tensor::Zeros({rows}, DType::kI32, DeviceKind::kMeta);
  layout->labels = layout->positions;
  layout->token_counters = Tensor::Zeros({rows}, DType::kI64, DeviceKind::kMeta);
  for (size_t s = 1; s < shape.cu_seqlens.size(); ++s)
    layout->max_len = std::max(layout->max_len, shape.cu_seqlens[s] - shape.cu_seqlens[s - 1]);
  const Tensor x = text
                       ? Tensor::Zeros({rows}, DType::kI32, DeviceKind::kMeta)
                       : Tensor::Zeros(Shape(shape.images.begin(), shape.images.end()), DType::kF32, DeviceKind::kMeta);
  return {x, std::move(layout)};
}

namespace {

BatchShape Images(const config::Job& job, int64_t count) {
  const auto& resnet = job.model().resnet();
  return {{}, {count, resnet.image_size(), resnet.image_size(), resnet.channels()}};
}
int64_t ImagesPerRank(const config::Size& batch, int ranks) { return (batch.images() + ranks - 1) / ranks; }

}  // namespace

BatchShape LargestMicroBatch(const config::Job& job, int ranks) {
  if (job.model().has_resnet()) {
    const bool grows = job.optim().has_batch_growth();
    const int64_t share = ImagesPerRank(grows ? job.optim().batch_growth().max() : job.global_batch(), ranks);
    return Images(job, job.has_micro_batch() ? std::min(share, job.micro_batch().images()) : share);
  }
  const int64_t longest = job.data().max_tokens();
  const int64_t share = job.has_micro_batch() ? Tokens(job.micro_batch(), longest)
                                              : (Tokens(job.global_batch(), longest) + ranks - 1) / ranks;
  return {Sequences(std::max(share, longest), longest), {}};
}

std::vector<BatchShape> FullBatch(const config::Job& job, int ranks) {
  if (job.model().has_resnet()) {
    std::vector<BatchShape> batches;
    const int64_t micro = LargestMicroBatch(job, ranks).images[0];
    for (int64_t left = ImagesPerRank(job.global_batch(), ranks); left > 0; left -= micro)
      batches.push_back(Images(job, std::min(left, micro)));
    return batches;
  }
  const int64_t longest = job.data().max_tokens();
  const int64_t share = std::max(longest, Tokens(job.global_batch(), longest) / ranks);
  const int64_t micro = job.has_micro_batch() ? std::max(longest, Tokens(job.micro_batch(), longest)) : share;
  std::vector<BatchShape> batches;
  for (int64_t left = share; left > 0; left -= micro)
    batches.push_back({Sequences(std::min(left, micro), longest), {}});
  return batches;
}

}  // namespace shoal
