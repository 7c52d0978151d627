#include "launch/commands/bench_sequence.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/trainer.h"
#include "models/layers.h"
#include "models/transformer_spec.h"
#include "parallel/mesh.h"
#include "parallel/sequence_shard.h"
#include "runtime/base/rank_context.h"
#include "runtime/base/status.h"
#include "runtime/module/local_params.h"
#include "runtime/module/step_context.h"

namespace shoal {
namespace {

// Of one layer over a sequence of `tokens`, spread like this.
absl::StatusOr<int64_t> PeakOfRanks(const config::TransformerConfig& config, int64_t tokens, SequenceSpread spread) {
  int64_t most = 0;
  std::mutex mutex;
  const absl::Status status = RunThreadRanks(spread.degree(), {}, [&](int, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(world, {}));
    AttentionBlock attention("attention", config);
    const std::vector<Param*> own = AssignIds(attention);
    LocalParams params(std::vector<const Param*>(own.begin(), own.end()), DType::kF32);
    SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(int64_t{1} << 36, DeviceKind::kCpu));
    ThreadPool pool(1);
    auto layout = std::make_shared<SeqLayout>();
    const std::vector<int32_t> lengths = {static_cast<int32_t>(tokens)};
    auto shard = std::make_shared<SequenceShard>(ShardSequences(lengths, spread, *mesh));
    const int64_t rows = shard->own_rows();
    layout->cu_seqlens = {0, static_cast<int32_t>(rows)};
    layout->positions = Tensor::Zeros({rows}, DType::kI32);
    if (spread.degree() > 1) layout->shard = shard;
    params.BeginStep();
    StepContext ctx({.ops = {.pool = &pool}, .arena = arena.get(), .params = &params});
    try {
      const Tensor x = ctx.Frame({rows, config.width()}, DType::kF32);
      ops::Fill(ctx.ops(), x, 0.5F);
      const Batch y = attention.Forward(ctx, {x, layout});
      const Tensor dy = ctx.Live(y.x.shape(), DType::kF32);
      ops::Copy(ctx.ops(), y.x, dy);
      attention.Backward(ctx, {dy, layout});
    } catch (const StepAborted& aborted) {
      return aborted.status();
    }
    const std::lock_guard lock(mutex);
    most = std::max(most, arena->peak());
    return absl::OkStatus();
  });
  SHOAL_RETURN_IF_ERROR(status);
  return most;
}

}  // namespace

absl::Status BenchSequenceMemory(const BenchArgs& args) {
  constexpr int kRanks = 8;
  config::TransformerConfig config;
  config.set_preset(config::TransformerConfig::LLAMA);
  config.set_layers(1);
  config.set_width(128);
  config.set_heads(8);
  const int64_t tokens = args.tokens;
  SHOAL_ASSIGN_OR_RETURN(config, ResolveTransformer(config, static_cast<int32_t>(tokens)));
  nlohmann::json report = {{"tokens", tokens}, {"width", config.width()}, {"heads", config.heads()}, {"ranks", kRanks}};
  SHOAL_ASSIGN_OR_RETURN(const int64_t one_rank, PeakOfRanks(config, tokens, {}));
  report["one_rank_bytes"] = one_rank;
  const std::map<std::string, SequenceSpread> spreads = {
      {"ulysses", {kRanks, 1}}, {"ring", {1, kRanks}}, {"both", {2, kRanks / 2}}};
  for (const auto& [name, spread] : spreads) {
    SHOAL_ASSIGN_OR_RETURN(const int64_t bytes, PeakOfRanks(config, tokens, spread));
    report["rank_bytes"][name] = bytes;
  }
  std::cout << report.dump() << std::endl;
  return absl::OkStatus();
}

absl::Status BenchSequencePairs(const BenchArgs& args) {
  constexpr int kSteps = 3;  // of a run, of which the last counts
  std::vector<std::string> sets = args.job.sets;
  sets.push_back(absl::StrCat("duration={ steps: ", kSteps, " }"));
  SHOAL_ASSIGN_OR_RETURN(auto loaded, LoadJob(args.job.job, sets));
  SHOAL_ASSIGN_OR_RETURN(const config::Job spread, ResolveJob(loaded, 1));
  loaded.job.mutable_parallel()->clear_sequence();
  SHOAL_ASSIGN_OR_RETURN(const config::Job plain, ResolveJob(loaded, 1));
  const auto step = [&](const config::Job& job) -> absl::StatusOr<double> {
    std::vector<double> seconds;
    TrainerOptions options{.job = job, .run_dir = "", .console = TrainerOptions::Console::kQuiet};
    options.step_seconds = &seconds;
    const auto world = FakeWorld(0, 1);
    RankContext rank{.rank = 0, .size = 1, .host = HostName(), .pool = std::make_unique<ThreadPool>(args.threads)};
    SHOAL_RETURN_IF_ERROR(Train(rank, *world, options).status());
    return seconds.back();
  };
  std::vector<double> on, off;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    // In turn: each comes first every other time.
    const bool spread_first = i % 2 == 0;
    SHOAL_ASSIGN_OR_RETURN(const double first, step(spread_first ? spread : plain));
    SHOAL_ASSIGN_OR_RETURN(const double second, step(spread_first ? plain : spread));
    if (i < args.warmup) continue;
    on.push_back(spread_first ? first : second);
    off.push_back(spread_first ? second : first);
  }
  std::cout << nlohmann::json{{"on", on}, {"off", off}}.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
