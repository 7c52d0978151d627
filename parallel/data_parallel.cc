#include "parallel/data_parallel.h"

#include <glog/logging.h>
#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/module/local_params.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

// Flat buffers come straight from the system: untouched pages cost nothing, and it says when there is not enough.
absl::StatusOr<Tensor> FlatBuffer(int64_t elements, DType dtype, DeviceKind device, const char* what) {
  if (device == DeviceKind::kMeta || elements == 0) return Tensor::Zeros({elements}, dtype, device);
  const auto bytes = static_cast<size_t>(elements * DTypeBytes(dtype));
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", HumanBytes(static_cast<double>(bytes)), " of ",
                                                     what,
                                                     "; take a smaller model, or more ranks with parallel.zero: 1"));
  }
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  std::shared_ptr<void> owner(memory, [bytes](void* p) { ::munmap(p, bytes); });
  return Tensor(std::make_shared<Storage>(memory, static_cast<int64_t>(bytes), DeviceKind::kCpu, owner), 0, {elements},
                dtype);
}

}  // namespace

struct DataParallel::Buffers {
  struct PerBucket {
    Tensor weights;  // compute dtype, all elements
    Tensor grads;    // f32, all elements
    Tensor owned;    // ZeRO 1: reduced gradients of this rank's run
    // With an arena: what lies under `grads` and `owned`, and the arena's blocks while they are there.
    std::shared_ptr<Storage> grads_memory, owned_memory;
    Tensor grads_block, owned_block;
    Tensor residual;               // f32, all elements; with error feedback
    std::vector<EncodedRun> runs;  // of the bucket's parameters
    std::shared_ptr<std::vector<RunErrors>> errors;
    enum class Residual : uint8_t { kZero, kHeld } holds = Residual::kZero;
    bool kept = false;                  // this step's gradients became the next residual
    Residual leaves = Residual::kZero;  // what this step's codecs do
    double ready = 0;
    Tensor masters;   // fp32 of this rank's run; a view of `weights` when compute is fp32 (or f64)
    int waiting = 0;  // parameters not ready yet in the last micro-batch
    WorkPtr work;
  };
  std::vector<PerBucket> buckets;
  std::vector<Tensor> weights;  // by Param::id
  std::vector<Tensor> grads;    // by Param::id
  std::vector<bool> touched;    // by Param::id: has a contribution in this step
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
                      .cost = options_.update_cost});
}
DataParallel::~DataParallel() = default;

namespace {

constexpr char kEncodedSteps[] = "codecs.steps";

DType GradType(DType compute) { return compute == DType::kF64 ? DType::kF64 : DType::kF32; }

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
  const DType grad_type = GradType(options.compute);
  if (options.codecs != nullptr) dp->codec_of_ = options.codecs->of;
  CHECK(options.codecs == nullptr || grad_type == DType::kF32) << "codes are of f32";
  b.weights.resize(dp->params_.size());
  b.grads.resize(dp->params_.size());
  b.touched.resize(dp->params_.size());
  for (const Bucket& bucket : dp->plan_.buckets) {
    auto& buffers = b.buckets.emplace_back();
    SHOAL_ASSIGN_OR_RETURN(buffers.weights, FlatBuffer(bucket.size, options.compute, options.device, "weights"));
    const auto gradients = [&](int64_t elements, const char* what,
                               std::shared_ptr<Storage>& memory) -> absl::StatusOr<Tensor> {
      if (options.arena == nullptr) return FlatBuffer(elements, grad_type, options.device, what);
      memory = std::make_shared<Storage>(nullptr, elements * DTypeBytes(grad_type), options.device);
      return Tensor(memory, 0, {elements}, grad_type);
    };
    SHOAL_ASSIGN_OR_RETURN(buffers.grads, gradients(bucket.size, "gradients", buffers.grads_memory));
    const auto run = Run(bucket, mesh.rank(), options.zero_stage);
    const int64_t begin = run.first, count = run.second;
    if (options.compute == DType::kBF16) {
      SHOAL_ASSIGN_OR_RETURN(buffers.masters, FlatBuffer(count, DType::kF32, options.device, "master weights"));
    } else {
      buffers.masters = buffers.weights.Rows(begin, begin + count);
    }
    // A group of one reduces nothing: its gradients are the sums already.
    if (mesh.size() == 1 || (options.zero_stage == 0 && !dp->Encodes())) {
      buffers.owned = buffers.grads.Rows(begin, begin + count);
    } else {
      SHOAL_ASSIGN_OR_RETURN(buffers.owned, gradients(count, "reduced gradients", buffers.owned_memory));
    }
    if (dp->Encodes()) {
      if (dp->KeepsResiduals()) {
        SHOAL_ASSIGN_OR_RETURN(buffers.residual, FlatBuffer(bucket.size, DType::kF32, options.device, "residuals"));
      }
      buffers.errors = std::make_shared<std::vector<RunErrors>>();
    }
    for (size_t i = 0; i < bucket.params.size(); ++i) {
      const Param& param = *dp->params_[bucket.params[i]];
      if (dp->Encodes()) {
        buffers.runs.push_back({.begin = bucket.offsets[i],
                                .end = bucket.offsets[i] + param.size(),
                                .codec = dp->codec_of_[param.id],
                                .tensor = NameHash(param.name)});
      }
      const auto part = [&](const Tensor& flat) {
        return flat.Rows(bucket.offsets[i], bucket.offsets[i] + param.size()).View(param.shape);
      };
      b.weights[param.id] = part(buffers.weights);
      b.grads[param.id] = part(buffers.grads);
      const auto own = [&](int64_t from, int64_t to) {
        const int64_t at = bucket.offsets[i] + from - begin;
        b.pieces.push_back(
            {&param, from, to, buffers.masters.Rows(at, at + to - from), buffers.owned.Rows(at, at + to - from)});
      };
      if (options.zero_stage == 0) {
        own(0, param.size());
        continue;
      }
      for (const ShardPiece& piece : bucket.owned[mesh.rank()]) {
        if (piece.param == param.id) own(piece.begin, piece.end);
      }
    }
  }
  if (dp->Encodes()) {
    dp->factored_ = std::make_unique<FactoredGradients>(mesh.gradients(), options.codecs->seed);
    dp->SetRanks();
  }
  return dp;
}

void DataParallel::InitializeWeights(uint64_t seed) {
  ThreadPool pool(1);
  InitializeWeights(pool, seed);
}

void DataParallel::InitializeWeights(ThreadPool& pool, uint64_t seed) {
  if (options_.device == DeviceKind::kMeta) return;
  OpContext ctx{.pool = &pool};
  for (const Param* param : params_) {
    const Tensor& weight = buffers_->weights[param->id];
    if (weight.dtype() != DType::kBF16) {
      InitialValues(pool, *param, seed, 0, weight);
      continue;
    }
    const Tensor wide = Tensor::Zeros(param->shape, DType::kF32);
    InitialValues(pool, *param, seed, 0, wide);
    ops::Copy(ctx, wide, weight);
  }
  if (options_.compute != DType::kBF16) return;
  for (OwnedPiece& piece : buffers_->pieces) InitialValues(pool, *piece.param, seed, piece.begin, piece.master);
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
  for (auto& buffers : buffers_->buckets) {
    if (buffers.grads_memory != nullptr) buffers.grads_memory->Rebind(nullptr);
    if (buffers.owned_memory != nullptr) buffers.owned_memory->Rebind(nullptr);
    buffers.grads_block = buffers.owned_block = Tensor();
  }
}

void DataParallel::BeginStep() {
  ReleaseGradients();
  buffers_->touched.assign(params_.size(), false);
  buffers_->next_bucket = 0;
  measure_ = nullptr;
  own_squares_ = 0;
  ++encoded_steps_;
  for (size_t i = 0; i < plan_.buckets.size(); ++i) {
    buffers_->buckets[i].waiting = static_cast<int>(plan_.buckets[i].params.size());
    buffers_->buckets[i].work = nullptr;
  }
}

void DataParallel::BeginMicroBatch(MicroBatch which) {
  buffers_->last = which == MicroBatch::kLast;
  if (buffers_->last) last_began_ = SteadySeconds();
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

Tensor DataParallel::Weight(const Param& param) { return buffers_->weights[param.id]; }

GradSink DataParallel::Grad(const Param& param) {
  const bool first = !buffers_->touched[param.id];
  buffers_->touched[param.id] = true;
  BindGradients(plan_.bucket_of[param.id]);
  return {buffers_->grads[param.id], first ? ops::Accumulate::kOverwrite : ops::Accumulate::kAdd};
}

void DataParallel::Ready(const Param& param) {
  if (!buffers_->last || options_.device == DeviceKind::kMeta) return;
  --buffers_->buckets[plan_.bucket_of[param.id]].waiting;
  StartReady();
}

// Starts reductions in bucket order, so that every rank submits them in the same one.
void DataParallel::StartReady() {
  auto& b = *buffers_;
  for (; b.next_bucket < b.buckets.size() && b.buckets[b.next_bucket].waiting == 0; ++b.next_bucket) {
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
      buffers.work = StartEncoded(b.next_bucket, tag);
      continue;
    }
    buffers.work = options_.zero_stage == 0
                       ? mesh_.gradients().AllReduce(buffers.grads, ReduceOp::kSum, {.tag = tag})
                       : mesh_.gradients().ReduceScatterV(buffers.grads, bucket.counts, buffers.owned, ReduceOp::kSum,
                                                          {.tag = tag});
  }
}

WorkPtr DataParallel::StartEncoded(size_t bucket, const std::string& tag) {
  auto& buffers = buffers_->buckets[bucket];
  const double ratio = rate_ > 0 && committed_rate_ > 0 ? std::clamp(committed_rate_ / rate_, 0.1, 10.0) : 1;
  buffers.errors->assign(buffers.runs.size(), {});
  // Nothing is left behind before the first code, and nothing after an exact step.
  using Residual = Buffers::PerBucket::Residual;
  buffers.leaves = AllExact(bucket) ? Residual::kZero : Residual::kHeld;
  buffers.kept = KeepsResiduals() && (buffers.holds == Residual::kHeld || buffers.leaves == Residual::kHeld);
  StartFactors(bucket, static_cast<float>(ratio));
  std::function<void(size_t, const CodecInput&)> observe;
  if (observe_ != nullptr) {
    observe = [this, bucket](size_t run, const CodecInput& input) {
      observe_(plan_.buckets[bucket].params[run], input);
    };
  }
  return mesh_.gradients().ReduceEncoded(
      {.in = buffers.grads,
       .residual = buffers.kept ? buffers.residual : Tensor(),
       .residual_scale = static_cast<float>(ratio),
       .counts = plan_.buckets[bucket].counts,
       .runs = buffers.runs,
       .half = options_.zero_stage == 0 ? EncodedReduction::Half::kAll : EncodedReduction::Half::kScatter,
       .out = buffers.owned,
       .seed = options_.codecs->seed,
       .step = static_cast<uint32_t>(encoded_steps_),
       .observe = std::move(observe),
       .errors = buffers.errors},
      {.tag = tag});
}

void DataParallel::CommitResiduals(ThreadPool& pool, double rate) {
  if (factored_ != nullptr) factored_->Commit();
  if (!KeepsResiduals()) return;
  OpContext ctx{.pool = &pool};
  for (auto& buffers : buffers_->buckets) {
    if (!buffers.kept) continue;
    ops::Copy(ctx, buffers.grads, buffers.residual);
    buffers.holds = buffers.leaves;
  }
  committed_rate_ = rate;
}

absl::Status DataParallel::FinishLoad() {
  if (!KeepsResiduals()) return loaded_;
  const bool reset = options_.codecs->resume == config::CompressionConfig::RESET;
  for (auto& buffers : buffers_->buckets) {
    if (reset) std::memset(buffers.residual.raw(), 0, static_cast<size_t>(buffers.residual.bytes()));
    buffers.holds = reset ? Buffers::PerBucket::Residual::kZero : Buffers::PerBucket::Residual::kHeld;
  }
  return loaded_;
}

std::vector<DataParallel::BucketTime> DataParallel::bucket_times() const {
  std::vector<BucketTime> times;
  for (const auto& buffers : buffers_->buckets)
    times.push_back({buffers.ready, buffers.ready + (buffers.work == nullptr ? 0 : buffers.work->Seconds())});
  return times;
}

uint64_t DataParallel::WeightHash(std::vector<uint64_t>* by_param) const {
  uint64_t all = 0;
  if (by_param != nullptr) by_param->assign(params_.size(), 0);
  for (const Param* param : params_) {
    const Tensor& weight = buffers_->weights[param->id];
    const uint64_t hash = XXH3_64bits(weight.raw(), static_cast<size_t>(weight.bytes()));
    if (by_param != nullptr) (*by_param)[param->id] = hash;
    all = all * 0x9E3779B97F4A7C15U + hash;
  }
  return all;
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
  for (size_t i = 0; i < plan_.buckets.size(); ++i) BindGradients(i);
  if (options_.device == DeviceKind::kMeta) return absl::OkStatus();
  for (const Param* param : params_) {
    if (buffers_->touched[param->id]) continue;
    const Tensor& grad = buffers_->grads[param->id];
    std::memset(grad.raw(), 0, static_cast<size_t>(grad.bytes()));
  }
  for (auto& buffers : buffers_->buckets) buffers.waiting = 0;
  StartReady();
  const auto start = std::chrono::steady_clock::now();
  backward_end_ = SteadySeconds() - last_began_;
  absl::Status status;
  for (auto& buffers : buffers_->buckets) {
    if (buffers.work != nullptr && status.ok()) status = buffers.work->Wait();
  }
  if (status.ok()) status = FinishFactors();
  observe_ = nullptr;
  reduce_wait_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return status;
}

absl::Span<OwnedPiece> DataParallel::pieces() { return absl::MakeSpan(buffers_->pieces); }

absl::Status DataParallel::PublishWeights(ThreadPool& pool) {
  if (options_.device == DeviceKind::kMeta) return absl::OkStatus();
  OpContext ctx{.pool = &pool};
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < plan_.buckets.size(); ++i) {
    auto& buffers = buffers_->buckets[i];
    const auto [begin, count] = Run(plan_.buckets[i], mesh_.rank(), options_.zero_stage);
    const Tensor own = buffers.weights.Rows(begin, begin + count);
    if (options_.compute == DType::kBF16 && count > 0) ops::Copy(ctx, buffers.masters, own);
    if (options_.zero_stage == 0 || mesh_.size() == 1) continue;
    works.push_back(mesh_.gradients().AllGatherV(own, plan_.buckets[i].counts, buffers.weights,
                                                 {.tag = absl::StrCat("weight bucket ", i)}));
  }
  absl::Status status;
  for (const WorkPtr& work : works) {
    if (status.ok()) status = work->Wait();
  }
  return status;
}

// A rank's residual of a tensor is part `rank` of "<name>/residual", the ranks' residuals one after the other. What
// matters of them is their sum, so another number of ranks takes an equal share of it each.
void DataParallel::VisitResiduals(StateVisitor& visitor) {
  constexpr char kRanks[] = "residuals.ranks", kRate[] = "residuals.rate";
  if (!visitor.Has(kRanks)) return;  // of a run without error feedback
  int64_t ranks = mesh_.size();
  visitor.Scalar(kRanks, ranks);
  visitor.Scalar(kRate, committed_rate_);
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
      const Tensor mine = buffers_->buckets[b].residual.Rows(bucket.offsets[i], bucket.offsets[i] + n);
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
  if (KeepsResiduals()) VisitResiduals(visitor);
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
  for (const auto& b : buffers_->buckets)
    bytes += b.grads.bytes() + ((options_.zero_stage == 1 || Encodes()) && mesh_.size() > 1 ? b.owned.bytes() : 0);
  return bytes;
}
int64_t DataParallel::residual_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) bytes += b.residual.defined() ? b.residual.bytes() : 0;
  return bytes + (factored_ == nullptr ? 0 : factored_->bytes());
}
int64_t DataParallel::reduced_bytes() const {
  if (mesh_.size() == 1) return 0;
  const int64_t halves = options_.zero_stage == 0 ? 2 : 1, ranks = mesh_.size();
  int64_t bytes = 0;
  for (size_t b = 0; b < plan_.buckets.size(); ++b) {
    int64_t whole = buffers_->buckets[b].grads.bytes();
    if (Encodes()) {
      whole = 0;
      for (const int param : plan_.buckets[b].params) whole += CodeBytes(*codec_of_[param], *params_[param]);
    }
    bytes += halves * whole * (ranks - 1) / ranks;
  }
  return bytes;
}
int64_t DataParallel::master_bytes() const {
  int64_t bytes = 0;
  for (const auto& b : buffers_->buckets) bytes += options_.compute == DType::kBF16 ? b.masters.bytes() : 0;
  return bytes;
}

}  // namespace shoal
