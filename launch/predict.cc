#include "launch/predict.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>

#include "comm/world.h"
#include "models/transformer.h"
#include "optim/optimizer.h"
#include "optim/optimizer_state.h"
#include "parallel/data_parallel.h"
#include "runtime/module/step_context.h"
#include "runtime/obs/metrics_log.h"

namespace shoal {
namespace {

// Counts bytes where the real source would hand out buffers.
class MetaParams : public ParamSource {
 public:
  MetaParams(DType compute) : compute_(compute) {}
  Tensor Weight(const Param& param) override { return Tensor::Zeros(param.shape, compute_, DeviceKind::kMeta); }
  GradSink Grad(const Param& param) override {
    return {Tensor::Zeros(param.shape, DType::kF32, DeviceKind::kMeta), ops::Accumulate::kAdd};
  }
  void Ready(const Param&) override {}

 private:
  DType compute_;
};

// The largest micro-batch that the job's sizes allow a rank.
std::vector<int32_t> LargestMicroBatch(const config::Job& job, int ranks) {
  const int64_t longest = job.data().max_tokens();
  int64_t tokens = 0;
  const config::Size& size = job.has_micro_batch() ? job.micro_batch() : job.global_batch();
  const int64_t share = job.has_micro_batch() ? 1 : ranks;
  if (size.has_tokens())
    tokens = (size.tokens() + share - 1) / share;
  else
    tokens = (size.sequences() + share - 1) / share * longest;
  tokens = std::max(tokens, longest);
  std::vector<int32_t> cu = {0};
  while (cu.back() < tokens) cu.push_back(static_cast<int32_t>(std::min<int64_t>(tokens, cu.back() + longest)));
  return cu;
}

}  // namespace

Prediction PredictMemory(const config::Job& job, int ranks) {
  Prediction p;
  const DType compute = job.runtime().compute() == config::RuntimeConfig::BF16 ? DType::kBF16 : DType::kF32;
  Transformer model(job.model().transformer(), job.parallel().recompute() == config::ParallelConfig::BLOCK
                                                   ? RecomputeBlocks::kYes
                                                   : RecomputeBlocks::kNo);
  // Rank 0 of a world in which every collective is done at once.
  const auto world = FakeWorld(0, ranks);
  auto mesh = Mesh::Create(*world, {});
  CHECK(mesh.ok()) << mesh.status();
  auto optimizer = MakeOptimizer(job.optim());
  CHECK(optimizer.ok()) << optimizer.status();
  auto dp = DataParallel::Create(model.params(), **mesh,
                                 {.zero_stage = job.parallel().zero(),
                                  .compute = compute,
                                  .bucket_bytes = static_cast<int64_t>(job.comm().bucket_mib() * (1 << 20)),
                                  .granularity = (*optimizer)->granularity(),
                                  .device = DeviceKind::kMeta});
  CHECK(dp.ok()) << dp.status();
  p.weights = (*dp)->weight_bytes();
  p.gradients = (*dp)->grad_bytes();
  p.masters = (*dp)->master_bytes();
  p.optimizer = OptimizerState(**optimizer, (*dp)->pieces(), DeviceKind::kMeta).bytes();
  p.checkpoint = p.optimizer;
  for (const OwnedPiece& piece : (*dp)->pieces()) p.checkpoint += (piece.end - piece.begin) * 4;

  auto arena = Arena::Create(int64_t{1} << 46, DeviceKind::kMeta);
  CHECK(arena.ok()) << arena.status();
  MetaParams params(compute);
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = LargestMicroBatch(job, ranks);
  p.micro_tokens = layout->tokens();
  layout->positions = Tensor::Zeros({p.micro_tokens}, DType::kI32, DeviceKind::kMeta);
  layout->labels = layout->positions;
  layout->token_counters = Tensor::Zeros({p.micro_tokens}, DType::kI64, DeviceKind::kMeta);
  layout->max_len = job.data().max_tokens();
  StepContext ctx({.ops = {.cost = &p.cost}, .arena = arena->get(), .params = &params, .compute = compute});
  const Batch y = model.Forward(ctx, {Tensor::Zeros({p.micro_tokens}, DType::kI32, DeviceKind::kMeta), layout});
  p.saved = (*arena)->frame_bytes();
  model.Backward(ctx, y);
  p.activations = (*arena)->peak();
  constexpr int64_t kProgram = 24 << 20;  // libraries, MPI, prefetched batches: measured on an empty model
  p.program = kProgram;
  return p;
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
