#include "launch/commands/bench_optimizer.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "launch/commands/stream_kernel.h"
#include "launch/config_loader.h"
#include "launch/model_setup.h"
#include "launch/optimizer_setup.h"
#include "launch/resolve.h"
#include "models/model.h"
#include "optim/optimizer.h"
#include "optim/optimizer_state.h"
#include "optim/pieces.h"
#include "parallel/data_parallel.h"
#include "parallel/mesh.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

constexpr int64_t kSide = 1000, kTensorElements = kSide * kSide;

absl::StatusOr<config::OptimConfig> ConfigOf(const std::string& kind) {
  config::OptimConfig config;
  if (kind == "adamw" || kind == "clip_adamw") {
    config.mutable_adamw();
  } else if (kind == "lars") {
    config.mutable_lars();
  } else if (kind == "lamb") {
    config.mutable_lamb();
  } else {
    return absl::InvalidArgumentError(absl::StrCat("--kind is '", kind, "'; it takes adamw, clip_adamw, lars or lamb"));
  }
  return config;
}

// Seconds of the kernel that only moves memory, over the optimizer's own: gradients are read; weights and two moments
// (a missing one taken from `spare`) are read and written.
double StreamSeconds(ThreadPool& pool, absl::Span<OptimizerPiece> pieces, const Tensor& spare) {
  const double start = SteadySeconds();
  ForPieceRuns(pool, pieces, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    const auto at = [begin](const Tensor& t) { return t.data<float>() + begin; };
    StreamRun(
        at(piece.grad), n, at(piece.master), at(piece.state[0]),
        at(piece.state.size() > 1 ? piece.state[1] : spare.Rows(piece.param->id * kTensorElements, spare.size())));
  });
  return SteadySeconds() - start;
}

void FillGradients(ThreadPool& pool, DataParallel& dp, absl::Span<const Param* const> params) {
  for (const Param* param : params) {
    const Tensor grad = dp.Grad(*param).grad;
    const Rng rng({1, RngPurpose::kTest, NameHash(param->name)});
    float* values = grad.data<float>();
    pool.ParallelFor(grad.size(), 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] = 1e-3f * (rng.Uniform(0, static_cast<uint64_t>(i)) - 0.5f);
    });
  }
}

}  // namespace

absl::Status BenchOptimizer(const BenchArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const config::OptimConfig config, ConfigOf(args.kind));
  std::vector<Param> matrices;
  for (int64_t left = args.parameters.value_or(100'000'000); left > 0; left -= kTensorElements) {
    const int id = static_cast<int>(matrices.size());
    const int64_t rows = std::max<int64_t>(1, std::min(left, kTensorElements) / kSide);
    matrices.push_back({.name = absl::StrCat("matrix.", id), .shape = {rows, kSide}, .id = id});
  }
  std::vector<const Param*> params;
  int64_t total = 0;
  for (const Param& param : matrices) {
    params.push_back(&param);
    total += param.size();
  }
  ThreadPool pool(args.threads);
  const auto world = FakeWorld(0, 1);
  SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(*world, {}));
  SHOAL_ASSIGN_OR_RETURN(const auto optimizer, MakeOptimizer(config, params, {}));
  SHOAL_ASSIGN_OR_RETURN(const auto dp, DataParallel::Create(params, *mesh, {}));
  OptimizerState state(*optimizer, dp->pieces(), DeviceKind::kCpu);
  const auto owners = SoleOwner();
  dp->InitializeWeights(pool, 1);
  dp->BeginStep();
  FillGradients(pool, *dp, params);
  const Tensor spare = Tensor::Zeros({total}, DType::kF32);

  OpContext ops{.pool = &pool};
  std::vector<double> step_seconds, stream_seconds;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const double stream = StreamSeconds(pool, state.pieces(), spare);
    for (const OptimizerPiece& piece : state.pieces()) {
      for (const Tensor& moment : piece.state) ops::Fill(ops, moment, 1e-6F);  // second moments are not negative
    }
    const double start = SteadySeconds();
    OptimizerStep step{.learning_rate = 1e-3, .grad_norm = 1};
    if (args.kind == "clip_adamw") {
      step.grad_norm = std::sqrt(ops::SumOfSquares(ops, state.grads()));
      step.grad_scale = std::min(1.0, 1 / step.grad_norm);
    }
    state.BeginUpdate(1, step);
    SHOAL_RETURN_IF_ERROR(optimizer->Step({pool, *owners}, step, state.shard()));
    if (i < args.warmup) continue;
    step_seconds.push_back(SteadySeconds() - start);
    stream_seconds.push_back(stream);
  }
  const double bytes = static_cast<double>(state.update_bytes()) / static_cast<double>(total);
  std::cout << nlohmann::json{{"kind", args.kind},
                              {"parameters", total},
                              {"bytes_per_parameter", bytes + (args.kind == "clip_adamw" ? 4 : 0)},
                              {"step_seconds", step_seconds},
                              {"stream_bytes_per_parameter", 28},
                              {"stream_seconds", stream_seconds}}
                   .dump()
            << std::endl;
  return absl::OkStatus();
}

absl::Status BenchMuon(const BenchArgs& args) {
  constexpr int kRanks = 2;
  SHOAL_ASSIGN_OR_RETURN(const auto loaded, LoadJob(args.job.job, args.job.sets));
  SHOAL_ASSIGN_OR_RETURN(config::Job job, ResolveJob(loaded, kRanks));
  if (!job.optim().has_muon()) job.mutable_optim()->mutable_muon();
  std::vector<double> seconds[2];  // by ZeRO stage
  const auto body = [&](int rank, Communicator& world) -> absl::Status {
    ThreadPool pool(args.threads);
    struct Side {
      std::unique_ptr<Model> model;
      std::unique_ptr<Mesh> mesh;
      std::unique_ptr<Optimizer> optimizer;
      std::unique_ptr<DataParallel> dp;
      std::unique_ptr<OptimizerState> state;
      std::unique_ptr<OwnerSum> owners;
    } sides[2];
    for (int zero = 0; zero < 2; ++zero) {
      Side& side = sides[zero];
      config::Job mine = job;
      mine.mutable_parallel()->set_zero(zero);
      SHOAL_ASSIGN_OR_RETURN(side.model, ModelFor(mine));
      SHOAL_ASSIGN_OR_RETURN(side.mesh, Mesh::Create(world, {}));
      SHOAL_ASSIGN_OR_RETURN(side.optimizer, OptimizerFor(mine, *side.model));
      SHOAL_ASSIGN_OR_RETURN(side.dp, DataParallel::Create(side.model->params(), *side.mesh,
                                                           StorageFor(mine, *side.model, *side.optimizer)));
      side.state = std::make_unique<OptimizerState>(*side.optimizer, side.dp->pieces(), DeviceKind::kCpu);
      side.owners = MakeOwnerSum(*side.mesh, zero);
      side.dp->InitializeWeights(pool, 1);
    }
    for (int i = 0; i < args.warmup + args.steps; ++i) {
      for (int zero = 0; zero < 2; ++zero) {
        Side& side = sides[zero];
        side.dp->BeginStep();
        FillGradients(pool, *side.dp, side.model->params());
        SHOAL_RETURN_IF_ERROR(side.dp->FinishReductions());
        SHOAL_RETURN_IF_ERROR(world.Barrier({.tag = "start"})->Wait());
        const double start = SteadySeconds();
        OptimizerStep step{.learning_rate = 1e-3, .grad_norm = 1};
        side.state->BeginUpdate(1, step);
        SHOAL_RETURN_IF_ERROR(side.optimizer->Step({pool, *side.owners}, step, side.state->shard()));
        SHOAL_RETURN_IF_ERROR(side.dp->PublishWeights(pool));
        SHOAL_RETURN_IF_ERROR(world.Barrier({.tag = "end"})->Wait());
        if (rank == 0 && i >= args.warmup) seconds[zero].push_back(SteadySeconds() - start);
      }
    }
    return absl::OkStatus();
  };
  SHOAL_RETURN_IF_ERROR(RunThreadRanks(kRanks, {}, body));
  std::cout
      << nlohmann::json{{"ranks", kRanks}, {"owner_seconds", seconds[1]}, {"every_rank_seconds", seconds[0]}}.dump()
      << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
