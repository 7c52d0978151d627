// Optimizers on several ranks: any number of them and either ZeRO stage train as one rank does, and state moves from
// one layout to another through a checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "comm/world.h"
#include "optim/optimizer_state.h"
#include "parallel/checkpoint/checkpoint_store.h"
#include "parallel/data_parallel.h"
#include "runtime/base/status.h"
#include "tests/optim/optimizer_fixture.h"

namespace shoal {
namespace {

// Everything that one rank of a run has.
class RankRun {
 public:
  static absl::StatusOr<std::unique_ptr<RankRun>> Create(const Problem& problem, const config::OptimConfig& config,
                                                         Communicator& world, int zero) {
    auto run = std::unique_ptr<RankRun>(new RankRun(problem));
    SHOAL_ASSIGN_OR_RETURN(run->mesh_, Mesh::Create(world, {}));
    const auto pointers = problem.pointers();
    SHOAL_ASSIGN_OR_RETURN(run->optimizer_, MakeOptimizer(config, pointers, {}));
    DataParallelOptions options{.zero_stage = zero,
                                .compute = DType::kF32,
                                .bucket_bytes = 100000,
                                .granularity = run->optimizer_->granularity(),
                                .update_cost = {},
                                .device = DeviceKind::kCpu};
    for (const Param* param : pointers) options.update_cost.push_back(run->optimizer_->UpdateCost(*param));
    SHOAL_ASSIGN_OR_RETURN(run->dp_, DataParallel::Create(pointers, *run->mesh_, options));
    run->dp_->InitializeWeights(run->pool_, 5);
    run->state_ = std::make_unique<OptimizerState>(*run->optimizer_, run->dp_->pieces(), DeviceKind::kCpu);
    run->owners_ = MakeOwnerSum(*run->mesh_, zero);
    return run;
  }
  // Rank 0 has the whole gradient, the others none: the sum has the same bits for any number of ranks.
  absl::Status Step(int step) {
    dp_->BeginStep();
    SHOAL_RETURN_IF_ERROR(dp_->BeginMicroBatch(DataParallel::MicroBatch::kLast));
    for (size_t p = problem_.params.size(); p-- > 0 && mesh_->rank() == 0;) {
      const Tensor grad = dp_->Grad(problem_.params[p]).grad;
      for (int64_t i = 0; i < grad.size(); ++i) grad.data<float>()[i] = static_cast<float>(problem_.grad(step, p, i));
      dp_->Ready(problem_.params[p]);
    }
    SHOAL_RETURN_IF_ERROR(dp_->FinishReductions());
    OptimizerStep update = StepOf(problem_, step);
    state_->BeginUpdate(1, update);
    SHOAL_RETURN_IF_ERROR(optimizer_->Step({pool_, *owners_}, update, state_->shard()));
    return dp_->PublishWeights(pool_);
  }
  const OptimizerState& state() const { return *state_; }
  std::vector<Stateful*> Everything() { return {dp_.get(), state_.get()}; }
  absl::Status Publish() { return dp_->PublishWeights(pool_); }
  Weights weights() {
    Weights all;
    for (const Param& param : problem_.params) {
      const auto span = dp_->Weight(param).View({param.size()}).span<float>();
      all.emplace_back(span.begin(), span.end());
    }
    return all;
  }

 private:
  explicit RankRun(const Problem& problem) : problem_(problem) {}
  const Problem& problem_;
  ThreadPool pool_{1};
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<DataParallel> dp_;
  std::unique_ptr<OptimizerState> state_;
  std::unique_ptr<OwnerSum> owners_;
};

constexpr int kRankSteps = 3;

// Weights of every rank after kRankSteps.
std::vector<Weights> TrainOn(const Problem& problem, const config::OptimConfig& config, int ranks, int zero) {
  std::vector<Weights> weights(ranks);
  const absl::Status status = RunThreadRanks(ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(const auto run, RankRun::Create(problem, config, world, zero));
    for (int step = 1; step <= kRankSteps; ++step) SHOAL_RETURN_IF_ERROR(run->Step(step));
    weights[rank] = run->weights();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return weights;
}

bool UsesNorms(const config::OptimConfig& config) { return config.has_lamb() || config.has_lars(); }

class OptimizerRanks : public testing::TestWithParam<OptimizerRow> {};

TEST_P(OptimizerRanks, AnyRanksAndEitherStageTrainAsOneRank) {
  const Problem problem = Problem::Standard();
  const Weights alone = TrainOn(problem, GetParam().config, 1, 0)[0];
  for (const int ranks : {1, 2, 3}) {
    for (const int zero : {0, 1}) {
      const auto weights = TrainOn(problem, GetParam().config, ranks, zero);
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_TRUE(weights[rank] == weights[0]) << "ranks have different weights";
      }
      if (!UsesNorms(GetParam().config)) {
        EXPECT_TRUE(weights[0] == alone) << ranks << " ranks, ZeRO " << zero;
        continue;
      }
      double off = 0, all = 0;
      for (size_t p = 0; p < alone.size(); ++p) {
        for (size_t i = 0; i < alone[p].size(); ++i) {
          off += std::pow(static_cast<double>(weights[0][p][i]) - static_cast<double>(alone[p][i]), 2);
          all += std::pow(static_cast<double>(alone[p][i]), 2);
        }
      }
      EXPECT_LE(std::sqrt(off), 1e-6 * std::sqrt(all)) << ranks << " ranks, ZeRO " << zero;
    }
  }
}

TEST_P(OptimizerRanks, StateMovesToAnotherNumberOfRanks) {
  const Problem problem = Problem::Standard();
  config::OptimConfig config = GetParam().config;
  if (!config.has_adagrad_norm()) config.set_moments(config::BF16);
  const Weights uninterrupted = TrainOn(problem, config, 1, 1)[0];
  const std::string folder = testing::TempDir() + "/optimizer_state_" + GetParam().name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto part = [&](int ranks, int first, int last, Weights& weights) {
    const absl::Status status = RunThreadRanks(ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(const auto run, RankRun::Create(problem, config, world, 1));
      CheckpointStore store({.dir = folder}, world);
      if (first > 1) {
        SHOAL_RETURN_IF_ERROR(store.LoadNewest(run->Everything()).status());
        SHOAL_RETURN_IF_ERROR(run->Publish());
      }
      for (int step = first; step <= last; ++step) SHOAL_RETURN_IF_ERROR(run->Step(step));
      SHOAL_RETURN_IF_ERROR(store.Save(last, run->Everything(), CheckpointStore::Best::kNo));
      SHOAL_RETURN_IF_ERROR(store.Wait());
      if (rank == 0) weights = run->weights();
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  };
  Weights weights;
  part(2, 1, 1, weights);
  part(3, 2, 2, weights);
  part(1, 3, kRankSteps, weights);
  std::filesystem::remove_all(folder);
  if (!UsesNorms(config)) {
    EXPECT_TRUE(weights == uninterrupted);
    return;
  }
  for (size_t p = 0; p < weights.size(); ++p) {
    for (size_t i = 0; i < weights[p].size(); ++i) ASSERT_NEAR(weights[p][i], uninterrupted[p][i], 1e-6);
  }
}

// LAMB's moments have AdamW's names: only the kind tells them apart.
TEST(OptimizerStateTest, AnotherOptimizersStateIsNamed) {
  const Problem problem = Problem::Standard();
  const std::string folder = testing::TempDir() + "/optimizer_kind";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const absl::Status status = RunThreadRanks(1, {}, [&](int, Communicator& world) -> absl::Status {
    config::OptimConfig adamw, lamb;
    lamb.mutable_lamb();
    SHOAL_ASSIGN_OR_RETURN(const auto saver, RankRun::Create(problem, adamw, world, 1));
    SHOAL_ASSIGN_OR_RETURN(const auto loader, RankRun::Create(problem, lamb, world, 1));
    CheckpointStore store({.dir = folder}, world);
    SHOAL_RETURN_IF_ERROR(store.Save(1, saver->Everything(), CheckpointStore::Best::kNo));
    SHOAL_RETURN_IF_ERROR(store.Wait());
    SHOAL_RETURN_IF_ERROR(store.LoadNewest(saver->Everything()).status());
    EXPECT_TRUE(saver->state().loaded().ok());
    SHOAL_RETURN_IF_ERROR(store.LoadNewest(loader->Everything()).status());
    EXPECT_THAT(loader->state().loaded().message(),
                testing::HasSubstr("the optimizer state of AdamW and this job trains with LAMB"));
    EXPECT_EQ(ExitCodeFor(loader->state().loaded()), ExitCode::kConfig);
    return absl::OkStatus();
  });
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(status.ok()) << status;
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerRanks, testing::ValuesIn(OptimizerTable()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace shoal
