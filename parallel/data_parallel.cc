#include "parallel/data_parallel.h"

#include <glog/logging.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/flat_buffer.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/module/local_params.h"
#include "runtime/obs/span.h"

namespace shoal {
struct DataParallel::Buffers {
  struct PerBucket {
    Tensor weights;  // compute dtype, all elements; with ZeRO 3 this rank's run
    Tensor grads;    // f32, all elements; ZeRO 2 and 3 have them in flight
    Tensor owned;    // ZeRO 1 to 3: reduced gradients of this rank's run
    // With an arena: what lies under `grads` and `owned`, and the arena's blocks while they are there.
    std::shared_ptr<Storage> grads_memory, owned_memory;
    Tensor grads_block, owned_block;
    Tensor residual;               // f32, all elements; with error feedback
    Tensor before;                 // likewise, in flight: what it was when the step began
    std::vector<EncodedRun> runs;  // of the bucket's parameters
    std::shared_ptr<std::vector<RunErrors>> errors;
    enum class Residual : uint8_t { kZero, kHeld } holds = Residual::kZero;
    bool kept = false;                  // the last reduction replaced the residual
    bool replaced = false;              // this step has, and is not committed yet
    Residual leaves = Residual::kZero;  // what this step's codecs do
    double ready = 0, seconds = 0;      // of the last reduction: handed over after the micro-batch began; took
    Tensor masters;                     // fp32 of this rank's run; a view of `weights` when compute is fp32 (or f64)
    int waiting = 0;                    // parameters not ready yet in the micro-batch that is reduced
    WorkPtr work;
  };
  std::vector<PerBucket> buckets;
  std::vector<Tensor> weights;  // by Param::id
  std::vector<Tensor> grads;    // by Param::id
  std::vector<bool> touched;    // by Param::id: has a contribution in this step, or (in flight) micro-batch
  std::vector<OwnedPiece> pieces;
  size_t next_bucket = 0;  // reductions start in this order on every rank
  bool last = false;
};

DataParallel::DataParallel(std::vector<const Param*> params, Mesh& mesh, DataParallelOptions options)
    : params_(std::move(params)), mesh_(mesh), options_(std::move(options)), buffers_(std::make_unique<Buffers>()) {
  plan_ = PlanShards({.params = params_,
                      .ranks = mesh_.size(),
                      .bucket_bytes = options_.bucket_bytes,
                      .granularity = options_.granularity,
                      .tied = options_.zero_stage >= 2 ? Tied::kApart : Tied::kTogether,
                      .cost = options_.update_cost});
}
DataParallel::~DataParallel() = default;

namespace {

constexpr char kEncodedSteps[] = "codecs.steps";

// First element and count of a rank's run of a bucket; with ZeRO 0 every rank's run is the whole bucket.
std::pair<int64_t, int64_t> Run(const Bucket& bucket, int rank, int zero_stage) {
  if (zero_stage == 0) return {0, bucket.size};
  int64_t begin = 0;
  for (int r = 0; r < rank; ++r) begin += bucket.counts[r];
  return {begin, bucket.counts[rank]};
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataParallel>> DataParallel::Create(std::vector<const Param*> params, Mesh& mesh,
                                                                   DataParallelOptions options) {
  auto dp = std::unique_ptr<DataParallel>(new DataParallel(std::move(params), mesh, options));
  Buffers& b = *dp->buffers_;
  if (options.codecs != nullptr) dp->codec_of_ = options.codecs->of;
  CHECK(options.codecs == nullptr || dp->grad_type() == DType::kF32) << "codes are of f32";
  b.weights.resize(dp->params_.size());
  b.grads.resize(dp->params_.size());
  b.touched.resize(dp->params_.size());
  // What a group of one holds is whole anyway.
  const int stage = mesh.size() > 1 ? options.zero_stage : std::min(options.zero_stage, 1);
  if (stage >= 2 && options.arena == nullptr) {
    int64_t elements = 0;
    for (const Param* param : dp->params_) elements += param->size() + 64;
    // Addresses only: all gradients and weights in 8 bytes an element, and room between them.
    SHOAL_ASSIGN_OR_RETURN(dp->own_arena_, Arena::Create(64 * elements + (1 << 24), options.device));
  }
  Arena* const arena = options.arena != nullptr ? options.arena : dp->own_arena_.get();
  if (stage >= 2) {
    dp->flights_ = std::make_unique<GradientFlights>(
        dp->plan_, *arena, dp->grad_type(), [self = dp.get()](const GradientFlights::Flight& f) { self->Landed(f); });
  }
  if (dp->Encodes()) dp->factored_ = std::make_unique<FactoredGradients>(mesh.gradients(0), options.codecs->seed);
  dp->shards_weights_ = stage >= 3;
  for (const Bucket& bucket : dp->plan_.buckets) SHOAL_RETURN_IF_ERROR(dp->CreateBucket(bucket));
  if (dp->shards_weights_) {
    std::vector<Tensor> shards;
    for (const auto& buffers : b.buckets) shards.push_back(buffers.weights);
    dp->units_ = std::make_unique<UnitStore>(dp->plan_, std::move(shards), mesh.parameters(), *arena);
  }
  if (dp->Encodes()) dp->SetRanks();
  return dp;
}

// The buffers of a bucket, and its parameters' views and pieces.
absl::Status DataParallel::CreateBucket(const Bucket& bucket) {
  Buffers& b = *buffers_;
  auto& buffers = b.buckets.emplace_back();
  const auto run = Run(bucket, mesh_.rank(), options_.zero_stage);
  const int64_t begin = run.first, count = run.second;
  SHOAL_ASSIGN_OR_RETURN(
      buffers.weights, FlatBuffer(shards_weights_ ? count : bucket.size, options_.compute, options_.device, "weights"));
  const Tensor own_weights = shards_weights_ ? buffers.weights : buffers.weights.Rows(begin, begin + count);
  if (options_.compute == DType::kBF16) {
    SHOAL_ASSIGN_OR_RETURN(buffers.masters, FlatBuffer(count, DType::kF32, options_.device, "master weights"));
  } else {
    buffers.masters = own_weights;
  }
  const auto gradients = [&](int64_t elements, const char* what,
                             std::shared_ptr<Storage>& memory) -> absl::StatusOr<Tensor> {
    if (options_.arena == nullptr) return FlatBuffer(elements, grad_type(), options_.device, what);
    memory = std::make_shared<Storage>(nullptr, elements * DTypeBytes(grad_type()), options_.device);
    return Tensor(memory, 0, {elements}, grad_type());
  };
  if (flights_ == nullptr) {
    SHOAL_ASSIGN_OR_RETURN(buffers.grads, gradients(bucket.size, "gradients", buffers.grads_memory));
  }
  // A group of one reduces nothing: its gradients are the sums already.
  if (mesh_.size() == 1 || (options_.zero_stage == 0 && !Encodes())) {
    buffers.owned = buffers.grads.Rows(begin, begin + count);
  } else {
    SHOAL_ASSIGN_OR_RETURN(buffers.owned, gradients(count, "reduced gradients", buffers.owned_memory));
  }
  if (Encodes()) {
    for (Tensor* residual : {&buffers.residual, &buffers.before}) {
      if (!KeepsResiduals() || (residual == &buffers.before && flights_ == nullptr)) continue;
      SHOAL_ASSIGN_OR_RETURN(*residual, FlatBuffer(bucket.size, DType::kF32, options_.device, "residuals"));
    }
    buffers.errors = std::make_shared<std::vector<RunErrors>>();
  }
  for (size_t i = 0; i < bucket.params.size(); ++i) {
    const Param& param = *params_[bucket.params[i]];
    if (Encodes()) {
      buffers.runs.push_back({.begin = bucket.offsets[i],
                              .end = bucket.offsets[i] + param.size(),
                              .codec = codec_of_[param.id],
                              .tensor = NameHash(param.name)});
    }
    const auto part = [&](const Tensor& flat) {
      return flat.Rows(bucket.offsets[i], bucket.offsets[i] + param.size()).View(param.shape);
    };
    if (!shards_weights_) b.weights[param.id] = part(buffers.weights);
    if (flights_ == nullptr) b.grads[param.id] = part(buffers.grads);
    const auto own = [&](int64_t from, int64_t to) {
      const int64_t at = bucket.offsets[i] + from - begin;
      b.pieces.push_back(
          {&param, from, to, buffers.masters.Rows(at, at + to - from), buffers.owned.Rows(at, at + to - from)});
    };
    if (options_.zero_stage == 0) {
      own(0, param.size());
      continue;
    }
    for (const ShardPiece& piece : bucket.owned[mesh_.rank()]) {
      if (piece.param == param.id) own(piece.begin, piece.end);
    }
  }
  return absl::OkStatus();
}

void DataParallel::InitializeWeights(uint64_t seed) {
  ThreadPool pool(1);
  InitializeWeights(pool, seed);
}

void DataParallel::InitializeWeights(ThreadPool& pool, uint64_t seed) {
  if (options_.device == DeviceKind::kMeta) return;
  OpContext ctx{.pool = &pool};
  for (const Param* param : params_) {
    if (shards_weights_) break;
    const Tensor& weight = buffers_->weights[param->id];
    if (weight.dtype() != DType::kBF16) {
      InitialValues(pool, *param, seed, 0, weight);
      continue;
    }
    const Tensor wide = Tensor::Zeros(param->shape, DType::kF32);
    InitialValues(pool, *param, seed, 0, wide);
    ops::Copy(ctx, wide, weight);
  }
  if (options_.compute != DType::kBF16 && !shards_weights_) return;
  for (OwnedPiece& piece : buffers_->pieces) InitialValues(pool, *piece.param, seed, piece.begin, piece.master);
  if (shards_weights_) CopyMasters(pool);
}

// Masters -> this rank's run of the weights, where they are not the same.
void DataParallel::CopyMasters(ThreadPool& pool) {
  OpContext ctx{.pool = &pool};
  for (size_t i = 0; i < plan_.buckets.size() && options_.compute == DType::kBF16; ++i) {
    const auto& buffers = buffers_->buckets[i];
    if (buffers.masters.size() > 0) ops::Copy(ctx, buffers.masters, OwnWeights(i));
  }
}

Tensor DataParallel::OwnWeights(size_t bucket) const {
  const Tensor& weights = buffers_->buckets[bucket].weights;
  if (shards_weights_) return weights;
  const auto [begin, count] = Run(plan_.buckets[bucket], mesh_.rank(), options_.zero_stage);
  return weights.Rows(begin, begin + count);
}

void DataParallel::BindGradients(size_t bucket) {
  auto& buffers = buffers_->buckets[bucket];
  const auto bind = [&](const Tensor& flat, Storage* memory, Tensor& block) {
    if (memory == nullptr || block.defined()) return;
    block = options_.arena->Live(flat.shape(), flat.dtype());
    memory->Rebind(block.raw());
  };
  bind(buffers.grads, buffers.grads_memory.get(), buffers.grads_block);
  bind(buffers.owned, buffers.owned_memory.get(), buffers.owned_block);
}

void DataParallel::ReleaseGradients() {
  RestoreResiduals();
  for (auto& buffers : buffers_->buckets) {
    if (buffers.grads_memory != nullptr) buffers.grads_memory->Rebind(nullptr);
    if (buffers.owned_memory != nullptr) buffers.owned_memory->Rebind(nullptr);
    buffers.grads_block = buffers.owned_block = Tensor();
  }
}

double DataParallel::TakePassWait() {
  const double reductions = flights_ == nullptr ? 0 : flights_->TakeWaited();
  reduce_wait_seconds_ += reductions;
  return reductions + (units_ == nullptr ? 0 : units_->TakeWaited());
}

void DataParallel::BeginStep() {
  ReleaseGradients();
  TakePassWait();
  measure_ = nullptr;
  reduce_wait_seconds_ = 0;
  micro_batches_ = 0;
  BeginRound();
  if (factored_ != nullptr) factored_->BeginStep();
  for (auto& buffers : buffers_->buckets) buffers.work = nullptr;
}

// Every bucket's reduction is still to come.
void DataParallel::BeginRound() {
  buffers_->touched.assign(params_.size(), false);
  buffers_->next_bucket = 0;
  own_squares_ = 0;
  ++encoded_steps_;
  for (size_t i = 0; i < plan_.buckets.size(); ++i)
    buffers_->buckets[i].waiting = static_cast<int>(plan_.buckets[i].params.size());
}

absl::Status DataParallel::BeginMicroBatch(MicroBatch which) {
  if (flights_ != nullptr && micro_batches_ > 0) {
    SHOAL_RETURN_IF_ERROR(FinishMicroBatch());
    BeginRound();
  }
  ++micro_batches_;
  if (units_ != nullptr) SHOAL_RETURN_IF_ERROR(units_->BeginPass(UnitStore::Pass::kTraining));
  buffers_->last = which == MicroBatch::kLast;
  if (buffers_->last) last_began_ = SteadySeconds();
  return absl::OkStatus();
}

// In flight: what Ready has not started (a rank without work contributes zeros), until all memory is free again.
absl::Status DataParallel::FinishMicroBatch() {
  for (auto& buffers : buffers_->buckets) buffers.waiting = 0;
  SHOAL_RETURN_IF_ERROR(StartReady());
  const absl::Status status = flights_->LandAll();
  reduce_wait_seconds_ += flights_->TakeWaited();
  return status;
}

void DataParallel::SetCodecs(std::vector<const Codec*> of) {
  CHECK(of.size() == params_.size()) << of.size() << " codecs for " << params_.size() << " parameters";
  codec_of_ = std::move(of);
  if (!Encodes()) return;
  for (size_t b = 0; b < plan_.buckets.size(); ++b) {
    for (size_t i = 0; i < plan_.buckets[b].params.size(); ++i)
      buffers_->buckets[b].runs[i].codec = codec_of_[plan_.buckets[b].params[i]];
  }
  SetRanks();
}

void DataParallel::SetRanks() {
  for (const Param* param : params_) {
    if (const int rank = codec_of_[param->id]->factor_rank(); rank > 0) factored_->SetRank(*param, rank);
  }
}

void DataParallel::StartFactors(size_t bucket, float residual_scale) {
  auto& buffers = buffers_->buckets[bucket];
  std::vector<FactoredGradients::Input> inputs;
  for (size_t i = 0; i < buffers.runs.size(); ++i) {
    const EncodedRun& run = buffers.runs[i];
    if (run.codec->factor_rank() == 0) continue;
    float* const gradient = buffers.grads.data<float>() + run.begin;
    const int param = plan_.buckets[bucket].params[i];
    inputs.push_back({params_[param],
                      {.gradient = gradient,
                       .residual = buffers.kept ? buffers.residual.data<float>() + run.begin : nullptr,
                       .residual_scale = residual_scale,
                       .size = run.end - run.begin,
                       .left = buffers.kept ? gradient : nullptr}});
  }
  factored_->Start(inputs);
}

absl::Status DataParallel::FinishFactors() {
  if (factored_ == nullptr) return absl::OkStatus();
  SHOAL_RETURN_IF_ERROR(FinishSumsOfFactors());
  // Like codes, they have left what they left behind where the gradient was.
  for (auto& buffers : buffers_->buckets) {
    for (const EncodedRun& run : buffers.runs) {
      if (run.codec->factor_rank() == 0 || !buffers.kept) continue;
      float* const gradients = buffers.grads.data<float>();
      std::swap_ranges(gradients + run.begin, gradients + run.end, buffers.residual.data<float>() + run.begin);
    }
  }
  return absl::OkStatus();
}

absl::Status DataParallel::FinishSumsOfFactors() {
  if (options_.zero_stage == 0) {
    return factored_->Finish([this](const Param& param) { return SummedGradient(param).data<float>(); });
  }
  // A rank owns pieces of a matrix, and takes them from the whole.
  std::map<int, Tensor> whole;
  SHOAL_RETURN_IF_ERROR(factored_->Finish([&](const Param& param) {
    const bool mine = std::any_of(buffers_->pieces.begin(), buffers_->pieces.end(),
                                  [&](const OwnedPiece& p) { return p.param == &param; });
    return mine ? (whole[param.id] = Tensor::Zeros({param.size()}, DType::kF32)).data<float>() : nullptr;
  }));
  for (const OwnedPiece& piece : buffers_->pieces) {
    if (const auto at = whole.find(piece.param->id); at != whole.end())
      std::copy_n(at->second.data<float>() + piece.begin, piece.end - piece.begin, piece.grad.data<float>());
  }
  return absl::OkStatus();
}

Tensor DataParallel::SummedGradient(const Param& param) const {
  CHECK(options_.zero_stage == 0) << "whole sums are there with ZeRO 0";
  const int bucket = plan_.bucket_of[param.id];
  const Bucket& b = plan_.buckets[bucket];
  const auto i = static_cast<size_t>(std::find(b.params.begin(), b.params.end(), param.id) - b.params.begin());
  return buffers_->buckets[bucket].owned.Rows(b.offsets[i], b.offsets[i] + param.size());
}

bool DataParallel::AllExact(size_t bucket) const {
  const auto& runs = buffers_->buckets[bucket].runs;
  return std::all_of(runs.begin(), runs.end(), [](const EncodedRun& run) { return run.codec->exact(); });
}

Tensor DataParallel::Weight(const Param& param) {
  auto weight = WholeWeight(param);
  if (!weight.ok()) throw StepAborted(weight.status());
  return *std::move(weight);
}

absl::StatusOr<Tensor> DataParallel::WholeWeight(const Param& param) {
  if (units_ != nullptr) return units_->Weight(param);
  return buffers_->weights[param.id];
}

absl::Status DataParallel::BeginEvaluation() {
  return units_ == nullptr ? absl::OkStatus() : units_->BeginPass(UnitStore::Pass::kEvaluation);
}

absl::Status DataParallel::ReleaseWeights() { return units_ == nullptr ? absl::OkStatus() : units_->Release(); }

void DataParallel::SetWeight(ThreadPool& pool, const Param& param, const Tensor& value) {
  OpContext ctx{.pool = &pool};
  if (!shards_weights_) ops::Copy(ctx, value, buffers_->weights[param.id]);
  for (const OwnedPiece& piece : buffers_->pieces) {
    if (piece.param == &param) ops::Copy(ctx, value.View({param.size()}).Rows(piece.begin, piece.end), piece.master);
  }
}

GradSink DataParallel::Grad(const Param& param) {
  const bool first = !buffers_->touched[param.id];
  const auto accumulate = first ? ops::Accumulate::kOverwrite : ops::Accumulate::kAdd;
  buffers_->touched[param.id] = true;
  const auto bucket = static_cast<size_t>(plan_.bucket_of[param.id]);
  if (flights_ == nullptr) {
    BindGradients(bucket);
    return {buffers_->grads[param.id], accumulate};
  }
  const auto whole = flights_->Open(bucket);
  if (!whole.ok()) throw StepAborted(whole.status());
  const int64_t begin = OffsetOf(param);
  return {whole->Rows(begin, begin + param.size()).View(param.shape), accumulate};
}

int64_t DataParallel::OffsetOf(const Param& param) const {
  const Bucket& bucket = plan_.buckets[plan_.bucket_of[param.id]];
  return bucket.offsets[std::find(bucket.params.begin(), bucket.params.end(), param.id) - bucket.params.begin()];
}

void DataParallel::Ready(const Param& param) {
  if (flights_ == nullptr && (!buffers_->last || options_.device == DeviceKind::kMeta)) return;
  --buffers_->buckets[plan_.bucket_of[param.id]].waiting;
  if (const absl::Status status = StartReady(); !status.ok()) throw StepAborted(status);
}

// Starts reductions in bucket order, so that every rank submits them in the same one.
absl::Status DataParallel::StartReady() {
  auto& b = *buffers_;
  for (; b.next_bucket < b.buckets.size() && b.buckets[b.next_bucket].waiting == 0; ++b.next_bucket) {
    if (flights_ != nullptr) {
      SHOAL_RETURN_IF_ERROR(StartFlight(b.next_bucket));
      continue;
    }
    auto& buffers = b.buckets[b.next_bucket];
    if (measure_ != nullptr) {
      OpContext ops{.pool = measure_};
      own_squares_ += ops::SumOfSquares(ops, buffers.grads);
    }
    if (mesh_.size() == 1) continue;
    const Bucket& bucket = plan_.buckets[b.next_bucket];
    const std::string tag = absl::StrCat("grad bucket ", b.next_bucket);
    buffers.ready = SteadySeconds() - last_began_;
    if (Encodes()) {
      buffers.work = StartEncoded(b.next_bucket, buffers.grads, buffers.owned, tag);
      continue;
    }
    Communicator& lane = mesh_.gradients(b.next_bucket);
    buffers.work = options_.zero_stage == 0
                       ? lane.AllReduce(buffers.grads, ReduceOp::kSum, {.tag = tag})
                       : lane.ReduceScatterV(buffers.grads, bucket.counts, buffers.owned, ReduceOp::kSum, {.tag = tag});
  }
  return absl::OkStatus();
}

// The first micro-batch's sums come to where they stay. Those of later ones come to this rank's part of the whole
// gradients, which nobody else reads; codes are decoded while that part is still needed, and so have a block.
absl::Status DataParallel::StartFlight(size_t bucket) {
  auto& buffers = buffers_->buckets[bucket];
  SHOAL_ASSIGN_OR_RETURN(const Tensor whole, flights_->Open(bucket));
  const bool first = micro_batches_ <= 1;
  if (first) BindGradients(bucket);
  const auto [begin, count] = Run(plan_.buckets[bucket], mesh_.rank(), options_.zero_stage);
  const Tensor block = !first && Encodes() ? flights_->Block(count) : Tensor();
  if (whole.meta()) {
    flights_->Depart(bucket, nullptr, block);
    return absl::OkStatus();
  }
  for (size_t i = 0; i < plan_.buckets[bucket].params.size(); ++i) {
    const Param& param = *params_[plan_.buckets[bucket].params[i]];
    if (buffers_->touched[param.id]) continue;
    const Tensor grad = whole.Rows(plan_.buckets[bucket].offsets[i], plan_.buckets[bucket].offsets[i] + param.size());
    std::memset(grad.raw(), 0, static_cast<size_t>(grad.bytes()));
  }
  if (measure_ != nullptr) {
    OpContext ops{.pool = measure_};
    own_squares_ += ops::SumOfSquares(ops, whole);
  }
  const std::string tag = absl::StrCat("grad bucket ", bucket);
  buffers.ready = SteadySeconds() - last_began_;
  const Tensor in = flights_->Lend(whole);
  const Tensor later = block.defined() ? flights_->Lend(block) : in.Rows(begin, begin + count);
  const Tensor& out = first ? buffers.owned : later;
  WorkPtr work = Encodes() ? StartEncoded(bucket, in, out, tag)
                           : mesh_.gradients(bucket).ReduceScatterV(in, plan_.buckets[bucket].counts, out,
                                                                    ReduceOp::kSum, {.tag = tag});
  flights_->Depart(bucket, std::move(work), first ? Tensor() : block.defined() ? block : later);
  return absl::OkStatus();
}

namespace {

template <class T>
void AddTo(const Tensor& from, const Tensor& to) {
  const T* const x = from.data<T>();
  T* const sum = to.data<T>();
  for (int64_t i = 0; i < to.size(); ++i) sum[i] += x[i];
}

}  // namespace

void DataParallel::Landed(const GradientFlights::Flight& flight) {
  auto& buffers = buffers_->buckets[flight.bucket];
  buffers.seconds = flight.work->Seconds();
  if (flight.sum.defined())
    grad_type() == DType::kF64 ? AddTo<double>(flight.sum, buffers.owned) : AddTo<float>(flight.sum, buffers.owned);
  if (buffers.kept && micro_batches_ <= 1)
    std::memcpy(buffers.before.raw(), flight.whole.raw(), static_cast<size_t>(flight.whole.bytes()));
}

WorkPtr DataParallel::StartEncoded(size_t bucket, const Tensor& in, const Tensor& out, const std::string& tag) {
  auto& buffers = buffers_->buckets[bucket];
  // Later rounds of a step go on where the one before ended, at the same rate.
  const bool first = flights_ == nullptr || micro_batches_ <= 1;
  const double ratio = first ? ResidualScale() : 1;
  // Nothing is left behind before the first code, and nothing after an exact step.
  using Residual = Buffers::PerBucket::Residual;
  buffers.leaves = AllExact(bucket) ? Residual::kZero : Residual::kHeld;
  const bool takes =
      KeepsResiduals() && ((first && buffers.holds == Residual::kHeld) || buffers.leaves == Residual::kHeld);
  if (first) {
    buffers.errors->assign(buffers.runs.size(), {});
    buffers.replaced = takes;
  }
  buffers.kept = takes;
  if (flights_ == nullptr) StartFactors(bucket, static_cast<float>(ratio));
  std::function<void(size_t, const CodecInput&)> observe;
  if (observe_ != nullptr) {
    observe = [this, bucket](size_t run, const CodecInput& input) {
      observe_(plan_.buckets[bucket].params[run], input);
    };
  }
  return mesh_.gradients(bucket).ReduceEncoded(
      {.in = in,
       .residual = takes ? buffers.residual : Tensor(),
       .residual_scale = static_cast<float>(ratio),
       .counts = plan_.buckets[bucket].counts,
       .runs = buffers.runs,
       .half = options_.zero_stage == 0 ? EncodedReduction::Half::kAll : EncodedReduction::Half::kScatter,
       .out = out,
       .seed = options_.codecs->seed,
       .step = static_cast<uint32_t>(encoded_steps_),
       .observe = std::move(observe),
       .errors = buffers.errors},
      {.tag = tag});
}

double DataParallel::ResidualScale() const {
  return rate_ > 0 && committed_rate_ > 0 ? std::clamp(committed_rate_ / rate_, 0.1, 10.0) : 1;
}

// What codes of more ranks had left behind joins the first gradients of a run that goes on alone.
void DataParallel::AddInherited() {
  const auto scale = static_cast<float>(ResidualScale());
  for (size_t b = 0; b < inherited_.size(); ++b) {
    const float* const from = inherited_[b].data<float>();
    float* const to = buffers_->buckets[b].grads.data<float>();
    for (int64_t i = 0; i < inherited_[b].size(); ++i) to[i] += scale * from[i];
  }
}

void DataParallel::CommitResiduals(double rate) {
  if (factored_ != nullptr) factored_->Commit();
  inherited_.clear();
  if (!KeepsResiduals()) return;
  for (auto& buffers : buffers_->buckets) {
    if (std::exchange(buffers.replaced, false)) buffers.holds = buffers.leaves;
  }
  committed_rate_ = rate;
}

void DataParallel::RestoreResiduals() {
  for (auto& buffers : buffers_->buckets) {
    if (!std::exchange(buffers.replaced, false)) continue;
    const Tensor& was = flights_ == nullptr ? buffers.grads : buffers.before;
    std::memcpy(buffers.residual.raw(), was.raw(), static_cast<size_t>(was.bytes()));
  }
}

absl::Status DataParallel::FinishLoad() {
  const bool reset = options_.codecs != nullptr && options_.codecs->resume == config::CompressionConfig::RESET;
  if (reset) inherited_.clear();
  if (!KeepsResiduals()) return loaded_;
  for (auto& buffers : buffers_->buckets) {
    if (reset) std::memset(buffers.residual.raw(), 0, static_cast<size_t>(buffers.residual.bytes()));
    buffers.holds = reset ? Buffers::PerBucket::Residual::kZero : Buffers::PerBucket::Residual::kHeld;
  }
  return loaded_;
}

std::vector<DataParallel::BucketTime> DataParallel::bucket_times() const {
  std::vector<BucketTime> times;
  for (const auto& buffers : buffers_->buckets) {
    const double seconds = buffers.work == nullptr ? buffers.seconds : buffers.work->Seconds();
    times.push_back({buffers.ready, buffers.ready + seconds});
  }
  return times;
}

absl::StatusOr<uint64_t> DataParallel::WeightHash(std::vector<uint64_t>* by_param) {
  uint64_t all = 0;
  if (by_param != nullptr) by_param->assign(params_.size(), 0);
  for (const Param* param : params_) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor weight, WholeWeight(*param));
    const uint64_t hash = XXH3_64bits(weight.raw(), static_cast<size_t>(weight.bytes()));
    if (by_param != nullptr) (*by_param)[param->id] = hash;
    all = all * 0x9E3779B97F4A7C15U + hash;
  }
  SHOAL_RETURN_IF_ERROR(ReleaseWeights());
  return all;
}

absl::Status DataParallel::CheckWeights() {
  SHOAL_ASSIGN_OR_RETURN(const uint64_t hash, WeightHash());
  const Tensor ends = Tensor::Zeros({2}, DType::kI64);
  ends.data<int64_t>()[0] = static_cast<int64_t>(hash);
  ends.data<int64_t>()[1] = ~static_cast<int64_t>(hash);
  SHOAL_RETURN_IF_ERROR(mesh_.control().AllReduce(ends, ReduceOp::kMax, {.tag = "weights' hash"})->Wait());
  if (ends.data<int64_t>()[0] == ~ends.data<int64_t>()[1]) return absl::OkStatus();
  std::vector<uint64_t> mine;
  SHOAL_RETURN_IF_ERROR(WeightHash(&mine).status());
  for (const Param* param : params_) {
    SHOAL_RETURN_IF_ERROR(
        Annotate(CheckEqualOnAllRanks(mesh_.control(), absl::StrCat("bits of ", param->name),
                                      absl::StrCat(absl::Hex(mine[param->id])), {.tag = "weights' hashes"}),
                 "ranks have drifted apart"));
  }
  return absl::OkStatus();
}

RunErrors DataParallel::codec_errors() const {
  RunErrors sum;
  for (const auto& buffers : buffers_->buckets) {
    for (size_t i = 0; Encodes() && i < buffers.errors->size(); ++i) {
      if (buffers.runs[i].codec->exact()) continue;
      sum.squares += (*buffers.errors)[i].squares;
      sum.error_squares += (*buffers.errors)[i].error_squares;
    }
  }
  return sum;
}

absl::Status DataParallel::FinishReductions() {
  if (flights_ != nullptr) {
    backward_end_ = SteadySeconds() - last_began_;
    SHOAL_RETURN_IF_ERROR(FinishMicroBatch());
    observe_ = nullptr;
    return ReleaseWeights();
  }
  for (size_t i = 0; i < plan_.buckets.size(); ++i) BindGradients(i);
  if (options_.device == DeviceKind::kMeta) return absl::OkStatus();
  for (const Param* param : params_) {
    if (buffers_->touched[param->id]) continue;
    const Tensor& grad = buffers_->grads[param->id];
    std::memset(grad.raw(), 0, static_cast<size_t>(grad.bytes()));
  }
  for (auto& buffers : buffers_->buckets) buffers.waiting = 0;
  SHOAL_RETURN_IF_ERROR(StartReady());
  const auto start = std::chrono::steady_clock::now();
  backward_end_ = SteadySeconds() - last_began_;
  absl::Status status;
  for (auto& buffers : buffers_->buckets) {
    if (buffers.work != nullptr && status.ok()) status = buffers.work->Wait();
  }
  AddInherited();
  if (status.ok()) status = FinishFactors();
  observe_ = nullptr;
  reduce_wait_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return status;
}

absl::Span<OwnedPiece> DataParallel::pieces() { return absl::MakeSpan(buffers_->pieces); }

absl::Status DataParallel::PublishWeights(ThreadPool& pool) {
  if (options_.device == DeviceKind::kMeta) return absl::OkStatus();
  CopyMasters(pool);
  if (units_ != nullptr) return units_->Release();
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < plan_.buckets.size(); ++i) {
    if (options_.zero_stage == 0 || mesh_.size() == 1) continue;
    works.push_back(mesh_.gradients(i).AllGatherV(OwnWeights(i), plan_.buckets[i].counts, buffers_->buckets[i].weights,
                                                  {.tag = absl::StrCat("weight bucket ", i)}));
  }
  absl::Status status;
  for (const WorkPtr& work : works) {
    if (status.ok()) status = work->Wait();
  }
  return status;
}

// A rank's residual of a tensor is part `rank` of "<name>/residual", the ranks' residuals one after the other. What
// matters of them is their sum, so another number of ranks takes an equal share of it each. One rank has them only
// until its first gradients have taken them.
void DataParallel::VisitResiduals(StateVisitor& visitor) {
  constexpr char kRanks[] = "residuals.ranks", kRate[] = "residuals.rate";
  if (!visitor.Has(kRanks)) return;  // of a run without error feedback
  int64_t ranks = KeepsResiduals() || !inherited_.empty() ? mesh_.size() : 0;
  visitor.Scalar(kRanks, ranks);
  visitor.Scalar(kRate, committed_rate_);
  if (ranks == 0) return;
  if (!KeepsResiduals() && inherited_.empty()) {
    for (const Bucket& bucket : plan_.buckets) inherited_.push_back(Tensor::Zeros({bucket.size}, DType::kF32));
  }
  if (ranks != mesh_.size() && options_.codecs->resume == config::CompressionConfig::EXACT) {
    loaded_ = absl::FailedPreconditionError(
        absl::StrCat("the checkpoint holds residuals of gradient codes of ", ranks, " ranks, and this run has ",
                     mesh_.size(), ", which comm.compression.resume: EXACT refuses; start it on ", ranks,
                     " ranks, or take FOLD, which shares their sum out, or RESET, which forgets them"));
    return;
  }
  for (size_t b = 0; b < plan_.buckets.size(); ++b) {
    const Bucket& bucket = plan_.buckets[b];
    for (size_t i = 0; i < bucket.params.size(); ++i) {
      const Param& param = *params_[bucket.params[i]];
      const int64_t n = param.size();
      const Tensor& residual = KeepsResiduals() ? buffers_->buckets[b].residual : inherited_[b];
      const Tensor mine = residual.Rows(bucket.offsets[i], bucket.offsets[i] + n);
      const std::string name = param.name + "/residual";
      if (ranks == mesh_.size()) {
        visitor.Shard(name, mine, {{ranks * n}, {mesh_.rank() * n}, {n}});
        continue;
      }
      const Tensor one = Tensor::Zeros({n}, DType::kF32);
      std::vector<double> sum(static_cast<size_t>(n));
      for (int64_t r = 0; r < ranks; ++r) {
        visitor.Shard(name, one, {{ranks * n}, {r * n}, {n}});
        for (int64_t e = 0; e < n; ++e) sum[e] += static_cast<double>(one.data<float>()[e]);
      }
      for (int64_t e = 0; e < n; ++e) mine.data<float>()[e] = static_cast<float>(sum[e] / mesh_.size());
    }
  }
}

void DataParallel::VisitState(StateVisitor& visitor) {
  if (Encodes() && visitor.Has(kEncodedSteps)) visitor.Scalar(kEncodedSteps, encoded_steps_);
  if (KeepsResiduals() || Inherits()) VisitResiduals(visitor);
  if (factored_ != nullptr) factored_->VisitState(visitor);
  for (const OwnedPiece& piece : buffers_->pieces) {
    visitor.TrueShape(piece.param->name, piece.param->shape);
    visitor.Shard(piece.param->name, piece.master, {{piece.param->size()}, {piece.begin}, {piece.end - piece.begin}});
  }
}

int64_t DataParallel::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) bytes += b.weights.bytes();
  return bytes;
}
int64_t DataParallel::grad_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) {
    if (flights_ == nullptr) bytes += b.grads.bytes();
    if ((options_.zero_stage > 0 || Encodes()) && mesh_.size() > 1) bytes += b.owned.bytes();
  }
  return bytes + (flights_ == nullptr ? 0 : flights_->peak_bytes());
}
int64_t DataParallel::residual_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) {
    for (const Tensor& residual : {b.residual, b.before}) bytes += residual.defined() ? residual.bytes() : 0;
  }
  return bytes + (factored_ == nullptr ? 0 : factored_->bytes());
}
int64_t DataParallel::reduced_bytes() const {
  if (mesh_.size() == 1) return 0;
  const int64_t halves = options_.zero_stage == 0 ? 2 : 1, ranks = mesh_.size();
  const int64_t rounds = flights_ == nullptr ? 1 : std::max<int64_t>(1, micro_batches_);
  int64_t bytes = 0;
  for (size_t b = 0; b < plan_.buckets.size(); ++b) {
    int64_t whole = plan_.buckets[b].size * DTypeBytes(grad_type());
    if (Encodes()) {
      whole = 0;
      for (const int param : plan_.buckets[b].params) whole += CodeBytes(*codec_of_[param], *params_[param]);
    }
    bytes += rounds * halves * whole * (ranks - 1) / ranks;
  }
  return bytes;
}
int64_t DataParallel::master_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) bytes += options_.compute == DType::kBF16 ? b.masters.bytes() : 0;
  return bytes;
}

}  // namespace shoal
