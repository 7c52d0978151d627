#include "launch/workload.h"

#include <glog/logging.h>

#include <algorithm>
#include <optional>

#include "launch/image_workload.h"
#include "launch/sequence_setup.h"
#include "parallel/sequence_planner.h"
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
    sequences_ = start.sequences;
    if (sequences_ != nullptr) options.share = LoaderOptions::Share::kByOthers;
    SHOAL_ASSIGN_OR_RETURN(loader_, Loader::Create(*data_, options, start.position));
    if (sequences_ != nullptr) return PlanHeldOut();
    for (const MicroBatch& micro : HeldOutBatches(*data_, job_.eval().max_tokens(),
                                                  std::max<int64_t>(data_->longest(), 4096), start.rank, start.ranks))
      held_out_.push_back(ToBatch(micro));
    return absl::OkStatus();
  }

  absl::StatusOr<StepInputs> Next(int64_t size) override {
    last_ = loader_->Next(size);
    StepInputs inputs = InputsOf(last_);
    for (const MicroBatch& micro : last_.micro) inputs.micro.push_back(micro.tokens.empty() ? Batch() : ToBatch(micro));
    return inputs;
  }

  void Spread(const StepPlan& plan, StepInputs& inputs) override {
    inputs.micro = BatchesOf(plan, last_.samples, last_.first_position);
  }

  StepInputs Upcoming(int64_t first_position, int64_t batch) const override {
    return InputsOf(loader_->Draw(first_position, batch));
  }

  absl::Status ForHeldOut(absl::FunctionRef<absl::Status(const Batch&)> fn) override {
    for (const Batch& batch : held_out_) SHOAL_RETURN_IF_ERROR(fn(batch));
    return absl::OkStatus();
  }

 private:
  static StepInputs InputsOf(const StepBatch& batch) {
    return {batch.next_position, batch.global_tokens, batch.lengths, {}};
  }

  // Held-out sequences may be as long as training's, and are spread likewise.
  absl::Status PlanHeldOut() {
    const std::vector<Sample> samples = HeldOutSamples(*data_, job_.eval().max_tokens());
    std::vector<int32_t> lengths;
    for (const Sample& sample : samples) lengths.push_back(sample.predictions);
    SHOAL_ASSIGN_OR_RETURN(
        const PlannedStep planned,
        PlanSequences({.lengths = lengths, .ranks = sequences_->mesh->size(), .model = &sequences_->costs}, "tier0"));
    held_out_ = BatchesOf(planned.plan, samples, 0);
    return absl::OkStatus();
  }

  // This rank's micro-batches of a plan over `samples`; x undefined where it has none.
  std::vector<Batch> BatchesOf(const StepPlan& plan, absl::Span<const Sample> samples, int64_t first_id) const {
    const int rank = sequences_->mesh->rank();
    std::vector<Batch> batches;
    for (const StepPlan::MicroBatch& micro : plan.micro_batches) {
      const auto mine = std::find_if(micro.groups.begin(), micro.groups.end(), [&](const StepPlan::Group& group) {
        return group.first_rank <= rank && rank < group.first_rank + group.degree;
      });
      batches.push_back(mine == micro.groups.end() ? Batch() : BatchOf(*mine, samples, first_id));
    }
    return batches;
  }

  Batch BatchOf(const StepPlan::Group& group, absl::Span<const Sample> samples, int64_t first_id) const {
    std::vector<int32_t> lengths;
    for (const int32_t s : group.sequences) lengths.push_back(samples[s].predictions);
    const auto spread = SpreadOf(group.degree, sequences_->heads, sequences_->mode);
    CHECK(spread.ok()) << spread.status();  // plans go no further than the mode does
    const auto shard = std::make_shared<SequenceShard>(ShardSequences(lengths, *spread, *sequences_->mesh));
    std::vector<SamplePart> parts;
    for (const SequenceShard::Run& run : shard->own_runs())
      parts.push_back({group.sequences[static_cast<size_t>(run.sequence)], run.begin, run.end});
    return ToBatch(ReadParts(*data_, samples, first_id, parts), group.degree == 1 ? nullptr : shard);
  }

  const config::Job job_;
  std::unique_ptr<TrainingData> data_;
  std::unique_ptr<Loader> loader_;
  const SequenceSpreading* sequences_ = nullptr;
  StepBatch last_;
  std::vector<Batch> held_out_;
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

void Workload::Spread(const StepPlan&, StepInputs&) { LOG(FATAL) << "this workload has no sequences"; }
StepInputs Workload::Upcoming(int64_t, int64_t) const { LOG(FATAL) << "this workload has no sequences"; }

absl::StatusOr<std::unique_ptr<Workload>> OpenWorkload(const config::Job& job) {
  if (job.model().has_resnet()) return OpenImageWorkload(job);
  SHOAL_ASSIGN_OR_RETURN(auto data, TrainingData::Open(job.data(), job.model().transformer().vocabulary()));
  return std::make_unique<TextWorkload>(job, std::move(data));
}

Batch ToBatch(const MicroBatch& micro, std::shared_ptr<const SequenceShard> shard) {
  auto layout = std::make_shared<SeqLayout>();
  layout->shard = std::move(shard);
  layout->cu_seqlens = micro.cu_seqlens;
  layout->positions = Int32Tensor(micro.positions);
  layout->labels = Int32Tensor(micro.labels);
  layout->max_len = micro.max_len;
  layout->token_counters = Tensor::Zeros({static_cast<int64_t>(micro.tokens.size())}, DType::kI64);
  int64_t* counters = layout->token_counters.data<int64_t>();
  for (size_t s = 0; s + 1 < micro.cu_seqlens.size(); ++s) {
    for (int32_t t = micro.cu_seqlens[s]; t < micro.cu_seqlens[s + 1]; ++t)
      counters[t] = static_cast<int64_t>(TokenCounter(micro.sample_ids[s], micro.positions[t]));
  }
  return Batch{Int32Tensor(micro.tokens), std::move(layout)};
}

BatchShape ShapeOf(const Batch& batch) {
  const Shape& shape = batch.x.shape();
  return batch.x.rank() == 4 ? BatchShape{{}, {shape.begin(), shape.end()}, {}}
                             : BatchShape{batch.layout->cu_seqlens, {}, {}};
}

Batch OnMeta(const BatchShape& shape) {
  auto layout = std::make_shared<SeqLayout>();
  const bool text = shape.images.empty();
  layout->cu_seqlens = shape.cu_seqlens;
  if (shape.spread.degree() > 1) {
    std::vector<int32_t> lengths;
    for (size_t s = 1; s < shape.cu_seqlens.size(); ++s)
      lengths.push_back(shape.cu_seqlens[s] - shape.cu_seqlens[s - 1]);
    auto shard = std::make_shared<SequenceShard>(ShardSequences(lengths, shape.spread, 0));
    layout->cu_seqlens = {0};
    for (const SequenceShard::Run& run : shard->own_runs())
      layout->cu_seqlens.push_back(layout->cu_seqlens.back() + run.end - run.begin);
    layout->shard = std::move(shard);
  }
  const int64_t rows = text ? layout->tokens() : shape.images[0];
  layout->positions = Tensor::Zeros({rows}, DType::kI32, DeviceKind::kMeta);
  layout->labels = layout->positions;
  layout->token_counters = Tensor::Zeros({rows}, DType::kI64, DeviceKind::kMeta);
  for (size_t s = 1; s < layout->cu_seqlens.size(); ++s)
    layout->max_len = std::max(layout->max_len, layout->cu_seqlens[s] - layout->cu_seqlens[s - 1]);
  const Tensor x = text
                       ? Tensor::Zeros({rows}, DType::kI32, DeviceKind::kMeta)
                       : Tensor::Zeros(Shape(shape.images.begin(), shape.images.end()), DType::kF32, DeviceKind::kMeta);
  return {x, std::move(layout)};
}

namespace {

BatchShape Images(const config::Job& job, int64_t count) {
  const auto& resnet = job.model().resnet();
  return {{}, {count, resnet.image_size(), resnet.image_size(), resnet.channels()}, {}};
}
int64_t ImagesPerRank(const config::Size& batch, int ranks) { return (batch.images() + ranks - 1) / ranks; }

}  // namespace

std::vector<BatchShape> LargestMicroBatches(const config::Job& job, int ranks) {
  if (job.model().has_resnet()) {
    const bool grows = job.optim().has_batch_growth();
    const int64_t share = ImagesPerRank(grows ? job.optim().batch_growth().max() : job.global_batch(), ranks);
    return {Images(job, job.has_micro_batch() ? std::min(share, job.micro_batch().images()) : share)};
  }
  const int64_t longest = job.data().max_tokens();
  if (job.parallel().has_sequence()) {
    std::vector<BatchShape> shapes;
    for (int degree = 1; degree <= LargestSequenceDegree(job, ranks); degree *= 2) {
      const auto spread = SpreadOf(degree, job.model().transformer().heads(), SequenceModeOf(job));
      CHECK(spread.ok()) << spread.status();
      shapes.push_back({Sequences(job.micro_batch().tokens() * degree, longest), {}, *spread});
    }
    return shapes;
  }
  const int64_t share = job.has_micro_batch() ? Tokens(job.micro_batch(), longest)
                                              : (Tokens(job.global_batch(), longest) + ranks - 1) / ranks;
  return {{Sequences(std::max(share, longest), longest), {}, {}}};
}

std::vector<BatchShape> FullBatch(const config::Job& job, int ranks) {
  if (job.model().has_resnet()) {
    std::vector<BatchShape> batches;
    const int64_t micro = LargestMicroBatches(job, ranks)[0].images[0];
    for (int64_t left = ImagesPerRank(job.global_batch(), ranks); left > 0; left -= micro)
      batches.push_back(Images(job, std::min(left, micro)));
    return batches;
  }
  const bool spread = job.parallel().has_sequence();
  const int64_t longest = spread ? std::min<int64_t>(job.data().max_tokens(), job.micro_batch().tokens())
                                 : int64_t{job.data().max_tokens()};
  const int64_t share = std::max(longest, Tokens(job.global_batch(), longest) / ranks);
  const int64_t micro = job.has_micro_batch() ? std::max(longest, Tokens(job.micro_batch(), longest)) : share;
  std::vector<BatchShape> batches;
  for (int64_t left = share; left > 0; left -= micro)
    batches.push_back({Sequences(std::min(left, micro), longest), {}, {}});
  return batches;
}

}  // namespace shoal
