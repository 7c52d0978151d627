// bench: one measurement, one line of JSON, for tests/figures to set beside a peer's.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/predict.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/trainer.h"
#include "models/transformer_spec.h"
#include "runtime/base/rank_context.h"
#include "runtime/base/status.h"
#include "runtime/ops/dispatch.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/arena.h"

namespace shoal {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int Probe(const BenchArgs& args) {
  ThreadPool pool(args.threads);
  OpContext ctx{.pool = &pool};
  constexpr int64_t kSide = 2048;
  const Tensor a = Tensor::Zeros({kSide, kSide}, DType::kF32), b = Tensor::Zeros({kSide, kSide}, DType::kF32),
               c = Tensor::Zeros({kSide, kSide}, DType::kF32);
  ops::Fill(ctx, a, 1);
  ops::Fill(ctx, b, 1);
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    const double start = Now();
    ops::Matmul(ctx, a, b, c);
    best = std::max(best, 2.0 * kSide * kSide * kSide / (Now() - start));
  }
  std::cout << nlohmann::json{{"gflops", best / 1e9}, {"threads", args.threads}}.dump() << std::endl;
  return 0;
}

int Attention(const BenchArgs& args) {
  ThreadPool pool(args.threads);
  OpContext ctx{.pool = &pool};
  auto arena = Arena::Create(int64_t{8} << 30, DeviceKind::kCpu);
  if (!arena.ok()) return Fail(arena.status());
  const Shape shape = {args.tokens, args.heads, args.head_size};
  std::vector<Tensor> t;
  for (int i = 0; i < 8; ++i) t.push_back(Tensor::Zeros(shape, DType::kF32));
  for (int i = 0; i < 4; ++i) {
    for (int64_t e = 0; e < t[i].size(); ++e)
      t[i].data<float>()[e] = static_cast<float>(std::sin(0.37 * static_cast<double>(e + i)));
  }
  const Tensor lse = Tensor::Zeros({args.heads, args.tokens}, DType::kF32);
  const std::vector<int32_t> cu = {0, static_cast<int32_t>(args.tokens)};
  const ops::AttentionOptions options{.scale = 1.0f / std::sqrt(static_cast<float>(args.head_size))};
  std::vector<double> seconds;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const double start = Now();
    ops::AttentionVarlenFwd(ctx, **arena, t[0], t[1], t[2], cu, t[4], lse, options);
    ops::AttentionVarlenBwd(ctx, **arena, t[3], t[0], t[1], t[2], t[4], lse, cu, t[5], t[6], t[7], options);
    if (i >= args.warmup) seconds.push_back(Now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  const double n = static_cast<double>(args.tokens), median = seconds[seconds.size() / 2];
  const double flops = 7 * 2 * n * (n + 1) / 2 * static_cast<double>(args.heads * args.head_size);
  std::cout << nlohmann::json{{"seconds", seconds},
                              {"gflops", flops / median / 1e9},
                              {"tokens", args.tokens},
                              {"heads", args.heads}}
                   .dump()
            << std::endl;
  return 0;
}

int Step(const BenchArgs& args) {
  std::vector<std::string> sets = args.job.sets;
  sets.push_back(absl::StrCat("duration={ steps: ", args.warmup + args.steps, " }"));
  sets.push_back(absl::StrCat("runtime.threads_per_rank=", args.threads));
  auto loaded = LoadJob(args.job.job, sets);
  if (!loaded.ok()) return Fail(loaded.status());
  auto job = ResolveJob(*loaded, 0);
  if (!job.ok()) return Fail(job.status());
  job->mutable_runtime()->set_compute(
      SettleCompute(*job, HostPrefersBf16() ? WeakestHost::kHasBf16 : WeakestHost::kHasNone).compute);
  std::vector<double> losses, seconds;
  int64_t peak = 0;
  double predicted = 0;
  int ranks = 1;
  const auto body = [&](Communicator& world) -> absl::Status {
    if (world.rank() == 0) ranks = world.size();
    RankContext rank{.rank = world.rank(),
                     .size = world.size(),
                     .host = HostName(),
                     .pool = std::make_unique<ThreadPool>(args.threads)};
    TrainerOptions options{.job = *job, .run_dir = "", .console = TrainerOptions::Console::kQuiet};
    if (world.rank() == 0) options.losses = &losses, options.step_seconds = &seconds, options.peak_memory = &peak;
    if (world.rank() == 0 && job->runtime().has_calibration()) options.predicted_seconds = &predicted;
    return Train(rank, world, options).status();
  };
  if (UnderMpiLauncher()) {
    auto world = MpiWorld({});
    if (!world.ok()) return Fail(world.status());
    const auto fake = FakeWorld((*world)->rank(), (*world)->size());
    const absl::Status status = body(job->comm().fake() ? *fake : **world);
    if (!status.ok()) AbortJob(Fail(status));
    const bool first = (*world)->rank() == 0;
    world->reset();
    FinalizeMpi();
    if (!first) return 0;
  } else if (const absl::Status status = RunThreadRanks(1, {}, [&](int, Communicator& world) { return body(world); });
             !status.ok()) {
    return Fail(status);
  }
  const std::vector<double> measured(seconds.begin() + args.warmup, seconds.end());
  const auto& t = job->model().transformer();
  std::cout << nlohmann::json{{"step_seconds", measured},
                              {"tokens", job->global_batch().has_tokens()
                                             ? job->global_batch().tokens()
                                             : job->global_batch().sequences() * job->data().max_tokens()},
                              {"parameters", ParameterCount(t)},
                              {"embedding_parameters", LookupParameterCount(t)},
                              {"peak_rss_bytes", peak},
                              {"predicted_seconds", predicted},
                              {"predicted_bytes", PredictMemory(*job, ranks, Checkpoints::kNo).total()},
                              {"bf16_native", HostPrefersBf16()},
                              {"losses", losses}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace

int RunBench(const BenchArgs& args) {
  if (args.what == "probe") return Probe(args);
  if (args.what == "attention") return Attention(args);
  return Step(args);
}

}  // namespace shoal
