#include "launch/predict.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "comm/world.h"
#include "launch/batch_control.h"
#include "launch/model_setup.h"
#include "launch/optimizer_setup.h"
#include "optim/ema.h"
#include "optim/optimizer_state.h"
#include "parallel/data_parallel.h"
#include "runtime/module/step_context.h"

namespace shoal {
namespace {

// Everything of a rank, on the meta device: rank 0 of a world in which every collective is done at once.
class DryRun {
 public:
  enum class Gradients : uint8_t { kInArena, kElsewhere };
  DryRun(const config::Job& job, int ranks, Gradients gradients) : job_(job), world_(FakeWorld(0, ranks)) {
    auto model = ModelFor(job, RecomputedBy(job.parallel()));
    CHECK(model.ok()) << model.status();
    model_ = *std::move(model);
    auto arena = Arena::Create(int64_t{1} << 46, DeviceKind::kMeta);
    CHECK(arena.ok()) << arena.status();
    arena_ = *std::move(arena);
    auto mesh = Mesh::Create(*world_, {});
    CHECK(mesh.ok()) << mesh.status();
    mesh_ = *std::move(mesh);
    auto optimizer = OptimizerFor(job, *model_);
    CHECK(optimizer.ok()) << optimizer.status();
    optimizer_ = *std::move(optimizer);
    DataParallelOptions storage = StorageFor(job, *model_, *optimizer_, DeviceKind::kMeta);
    if (gradients == Gradients::kInArena) storage.arena = arena_.get();
    auto dp = DataParallel::Create(model_->params(), *mesh_, std::move(storage));
    CHECK(dp.ok()) << dp.status();
    dp_ = *std::move(dp);
    state_ = std::make_unique<OptimizerState>(*optimizer_, dp_->pieces(), DeviceKind::kMeta);
    dp_->BeginStep();
  }

  // Forward and backward of one micro-batch; returns the bytes that forward keeps for backward.
  int64_t ForwardBackward(const BatchShape& shape, CostSheet* cost) {
    const absl::Status begun = dp_->BeginMicroBatch(DataParallel::MicroBatch::kLast);
    CHECK(begun.ok()) << begun;
    StepContext ctx({.ops = {.cost = cost}, .arena = arena_.get(), .params = dp_.get(), .compute = ComputeType(job_)});
    const Batch y = model_->Forward(ctx, OnMeta(shape));
    const int64_t saved = arena_->frame_bytes();
    model_->Backward(ctx, y);
    return saved;
  }
  void EndStep() {
    const absl::Status finished = dp_->FinishReductions();
    CHECK(finished.ok()) << finished;
    dp_->ReleaseGradients();
  }

  DataParallel& dp() { return *dp_; }
  Arena& arena() { return *arena_; }
  OptimizerState& state() { return *state_; }
  int64_t AverageBytes() {
    if (!job_.optim().has_ema()) return 0;
    return WeightEma(job_.optim().ema(), dp_->pieces(), model_->buffers(), DeviceKind::kMeta).bytes();
  }
  Mesh& mesh() { return *mesh_; }

 private:
  const config::Job& job_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<DataParallel> dp_;
  std::unique_ptr<OptimizerState> state_;
};

}  // namespace

Prediction PredictMemory(const config::Job& job, int ranks, Checkpoints checkpoints) {
  DryRun dry(job, ranks, DryRun::Gradients::kElsewhere);
  Prediction p;
  p.weights = dry.dp().weight_bytes();
  p.masters = dry.dp().master_bytes();
  p.optimizer = dry.state().bytes();
  p.noise = BatchControl(job, ranks, dry.state().grads(), DeviceKind::kMeta).bytes();
  p.averages = dry.AverageBytes();
  p.residuals = dry.dp().residual_bytes();
  for (const Bucket& bucket : dry.dp().plan().buckets) {
    // The pieces of all other ranks; reductions run one after the other.
    p.communication = std::max(p.communication, bucket.counts[0] * 4 * (ranks - 1));
  }
  if (checkpoints == Checkpoints::kYes) {
    p.checkpoint = p.optimizer + p.averages + p.residuals;
    for (const OptimizerPiece& piece : dry.state().pieces()) p.checkpoint += piece.master.size() * 4;
  }
  BatchShape largest;
  for (const BatchShape& shape : LargestMicroBatches(job, ranks)) {
    dry.arena().ResetPeak();
    dry.dp().BeginStep();
    const int64_t saved = dry.ForwardBackward(shape, nullptr);
    dry.EndStep();
    if (dry.arena().peak() <= p.activations) continue;
    largest = shape;
    p.saved = saved;
    p.activations = dry.arena().peak();
  }
  p.micro_rows = largest.images.empty() ? largest.cu_seqlens.back() / largest.spread.degree() : largest.images[0];
  for (const BatchShape& micro : FullBatch(job, ranks)) {
    if (micro.images.empty()) break;
    p.images_ahead += NumElements(micro.images) * 4 * (job.data().images().prefetch_steps() + 1);
  }
  if (job.optim().has_batch_growth())
    p.images_ahead = p.images_ahead * Count(job.optim().batch_growth().max()) / Count(job.global_batch());
  const bool several = FullBatch(job, ranks).size() > 1 || job.optim().has_batch_growth();
  DryRun whole(job, ranks, DryRun::Gradients::kInArena);
  // The first step records in which order weights are gathered, and those after it have more of them at once.
  for (int step = 0; step < (whole.dp().gathers_weights() ? 2 : 1); ++step) {
    whole.dp().BeginStep();
    whole.ForwardBackward(largest, nullptr);
    if (several) whole.ForwardBackward(largest, nullptr);
    whole.EndStep();
  }
  p.gradients = whole.dp().grad_bytes();
  p.gathered = whole.dp().gathered_bytes();
  p.step = whole.arena().peak();
  constexpr int64_t kProgram = 24 << 20;  // libraries, MPI, prefetched text: measured on an empty model
  p.program = kProgram;
  return p;
}

int64_t ActivationBytes(const config::Job& job, int64_t tokens) {
  DryRun dry(job, 1, DryRun::Gradients::kElsewhere);
  dry.ForwardBackward({{0, static_cast<int32_t>(tokens)}, {}, {}}, nullptr);
  return dry.arena().peak();
}

CostSheet StepCost(const config::Job& job, int ranks, absl::Span<const BatchShape> micro_batches) {
  DryRun dry(job, ranks, DryRun::Gradients::kElsewhere);
  CostSheet cost;
  for (const BatchShape& micro : micro_batches) dry.ForwardBackward(micro, &cost);
  OpContext ops{.cost = &cost};
  ops::SumOfSquares(ops, dry.state().grads());
  for (const auto& [name, bytes] : StepTraffic(dry.dp(), dry.state(), dry.mesh())) cost.ops[name] += {1, 0, bytes};
  return cost;
}

std::map<std::string, double> StepTraffic(const DataParallel& dp, const OptimizerState& state, const Mesh& mesh) {
  const bool alone = mesh.size() == 1;
  int64_t reduced = dp.reduces_each_micro_batch() ? 0 : dp.grad_bytes();
  for (const Bucket& bucket : dp.plan().buckets) {
    if (dp.reduces_each_micro_batch()) reduced += 4 * (bucket.size + bucket.counts[mesh.rank()]);
  }
  return {{"reduce", alone ? 0.0 : static_cast<double>(reduced)},
          {"scalars", alone ? 0.0 : 8.0 * (11 + mesh.size())},
          {"optimizer", static_cast<double>(state.update_bytes())},
          {"publish",
           (alone || dp.gathers_weights()) && dp.master_bytes() == 0 ? 0.0 : static_cast<double>(dp.weight_bytes())}};
}

double MeasureProductPeak(ThreadPool& pool, DType dtype) {
  constexpr int64_t kSide = 768;
  constexpr double kSeconds = 0.05;
  OpContext ctx{.pool = &pool};
  const Tensor a = Tensor::Zeros({kSide, kSide}, dtype), b = Tensor::Zeros({kSide, kSide}, dtype),
               c = Tensor::Zeros({kSide, kSide}, DType::kF32);
  ops::Fill(ctx, a, 1);
  ops::Fill(ctx, b, 1);
  double best = 0, spent = 0;
  while (spent < kSeconds) {
    const auto start = std::chrono::steady_clock::now();
    ops::Matmul(ctx, a, b, c);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * kSide * kSide * kSide / seconds);
    spent += seconds;
  }
  return best;
}

}  // namespace shoal
