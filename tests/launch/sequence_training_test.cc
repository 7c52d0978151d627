// Training with sequences that are spread by plans: the losses of one rank, whatever plans them; resumed and replayed
// runs have the same bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/resolve.h"
#include "launch/trainer.h"
#include "parallel/sequence_plan_text.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

using testing::HasSubstr;

class SequenceTraining : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/sequences_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    auto writer = *DatasetWriter::Create(PosixFiles(), folder_ + "/data", 256);
    // A long tail: most have some twenty tokens, a few more than a rank or two hold.
    for (int d = 0; d < 60; ++d) {
      std::string text;
      const int length = d % 9 == 0 ? 90 + 3 * d : d % 4 == 0 ? 40 + d : 8 + d % 17;
      for (int i = 0; i < length; ++i) text += static_cast<char>('a' + (i * (d % 5 + 1)) % 26);
      ASSERT_TRUE(writer->AddDocumentBytes(text).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  }

  config::Job Job(const std::vector<std::string>& sets, int ranks) const {
    LoadedJob loaded;
    ConfigErrors errors;
    ParseTextConfig(absl::StrFormat(R"(
      model { transformer { preset: LLAMA layers: 2 width: 32 heads: 4 kv_heads: 2 dropout: 0.1 } }
      data { dataset { path: "%s" } max_tokens: 250 held_out: 0.1 over_long: DROP }
      global_batch { sequences: 14 } duration { steps: 4 }
      optim { learning_rate: 3e-3 schedule { shape: CONSTANT warmup { steps: 2 } } }
      eval { max_tokens: 4000 }
    )",
                                    folder_ + "/data"),
                    "test", loaded.job, errors, loaded.places);
    for (const auto& set : sets) ApplySet(set, "--set", loaded.job, errors, loaded.places);
    EXPECT_TRUE(errors.Result().ok()) << errors.Result();
    auto job = ResolveJob(loaded, ranks);
    EXPECT_TRUE(job.ok()) << job.status();
    job->mutable_runtime()->set_compute(SettleCompute(*job, WeakestHost::kHasNone).compute);
    return *job;
  }

  struct Result {
    absl::Status status;
    std::vector<double> losses;
    std::vector<StepRecord> records;
    std::string weights;
    TrainOutcome outcome;
  };
  static Result Train(const config::Job& job, int ranks, const std::string& run_dir = "") {
    Result result;
    if (!run_dir.empty()) std::filesystem::create_directories(run_dir + "/checkpoints");
    result.status = RunThreadRanks(ranks, {}, [&](int r, Communicator& world) -> absl::Status {
      RankContext rank{.rank = r, .size = ranks, .host = "", .pool = std::make_unique<ThreadPool>(1)};
      TrainerOptions options{.job = job, .run_dir = run_dir, .console = TrainerOptions::Console::kQuiet};
      std::string others;  // with ZeRO 3 all ranks gather the weights
      options.weights = r == 0 ? &result.weights : &others;
      if (r == 0) {
        options.losses = &result.losses;
        options.records = &result.records;
      }
      SHOAL_ASSIGN_OR_RETURN(const TrainOutcome outcome, shoal::Train(rank, world, options));
      if (r == 0) result.outcome = outcome;
      return absl::OkStatus();
    });
    return result;
  }
  std::string folder_;
};

std::vector<std::string> Spread(int tokens, const std::string& sequence) {
  return {absl::StrCat("micro_batch={ tokens: ", tokens, " }"), absl::StrCat("parallel.sequence={ ", sequence, " }")};
}

// Of two models' f32 weights.
double MostDifference(const std::string& a, const std::string& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i + sizeof(float) <= std::min(a.size(), b.size()); i += sizeof(float)) {
    float x, y;
    std::memcpy(&x, &a[i], sizeof x);
    std::memcpy(&y, &b[i], sizeof y);
    most = std::max(most, std::abs(static_cast<double>(x) - y));
  }
  return most;
}

TEST_F(SequenceTraining, AnyPlannerTrainsAsOneRankDoes) {
  // So that every step is clipped.
  const std::string clip = "optim.clip_norm=0.3";
  const Result one = Train(Job({clip}, 1), 1);
  ASSERT_TRUE(one.status.ok()) << one.status;
  ASSERT_EQ(one.losses.size(), 4u);
  for (const StepRecord& record : one.records) EXPECT_GT(record.grad_norm, 0.3);
  struct Row {
    int ranks, tokens;
    std::string sequence, zero = {};
  };
  std::vector<Row> rows = {{8, 40, "planner: \"tier0\" mode: RING"},
                           {4, 64, "planner: \"static\" degree: 4"},
                           {7, 64, "planner: \"greedy\""},
                           {6, 64, "planner: \"in_order\""},
                           {8, 32, "max_degree: 8"},
                           {4, 64, "mode: ULYSSES"},
                           {4, 64, "planner: \"flexsp\"", "2"},
                           {3, 130, "planner: \"greedy\"", "0"},
                           {5, 250, "max_degree: 1"},
                           {1, 250, ""},
                           {2, 130, "planner: \"flexsp\" mode: RING"}};
  for (const SequencePlanner& planner : SequencePlanners()) {
    const auto i = static_cast<int>(&planner - SequencePlanners().data());
    rows.push_back({8, 40, absl::StrCat("planner: \"", planner.name, "\""), absl::StrCat(i % 4)});
  }
  rows.push_back({7, 64, "planner: \"flexsp\"", "3"});
  for (const Row& row : RowsToTry(rows)) {
    SCOPED_TRACE(absl::StrCat(row.ranks, " ranks of ", row.tokens, " tokens, ", row.sequence));
    // Live costs are measured, which takes its time under sanitizers: one row of them will do.
    const bool live = row.ranks == 4 && row.sequence == "planner: \"flexsp\"";
    std::vector<std::string> sets = Spread(row.tokens, row.sequence);
    sets.push_back(clip);
    if (!live) sets.emplace_back("parallel.sequence.plans=DETERMINISTIC");
    if (row.ranks == 7) sets.emplace_back("parallel.recompute=BLOCK");
    if (!row.zero.empty()) sets.push_back(absl::StrCat("parallel.zero=", row.zero));
    const Result got = Train(Job(sets, row.ranks), row.ranks);
    ASSERT_TRUE(got.status.ok()) << got.status;
    ASSERT_EQ(got.losses.size(), one.losses.size());
    for (size_t i = 0; i < got.losses.size(); ++i)
      EXPECT_NEAR(got.losses[i], one.losses[i], 3e-5 * one.losses[i]) << "step " << i;
    EXPECT_LE(MostDifference(got.weights, one.weights), 3e-5) << "a hundredth of an update";
    EXPECT_NEAR(got.outcome.eval_loss, one.outcome.eval_loss, 3e-5 * one.outcome.eval_loss);
    ASSERT_EQ(got.records.size(), one.records.size());
    for (size_t i = 0; i < got.records.size(); ++i) {
      const StepRecord& record = got.records[i];
      EXPECT_NEAR(record.grad_norm, one.records[i].grad_norm, 3e-5 * one.records[i].grad_norm) << "step " << i;
      EXPECT_FALSE(record.sequence_plan.empty());
      EXPECT_GT(record.plan_predicted_seconds, 0);
      EXPECT_GE(record.plan_gap, 0);
      EXPECT_GE(record.plan_exposed_seconds, 0);
      EXPECT_GT(record.plan_exchange_seconds, 0) << "ranks agree on it";
      // The first step's time is without what is done once.
      if (record.step > 1) {
        EXPECT_LT(record.plan_exposed_seconds + record.plan_exchange_seconds, record.seconds);
      }
    }
  }
}

// Under mpirun the number of ranks is known only when they have started.
TEST_F(SequenceTraining, WhatRanksCannotDoIsSaidBeforeTheFirstStep) {
  struct Row {
    int ranks;
    std::vector<std::string> sets;
    const char* says;
  };
  const std::vector<Row> rows = {
      {2, Spread(64, ""), "data.max_tokens is 250, but a group of 2 ranks, the largest here (2 ranks), holds 128"},
      {3, Spread(128, "planner: \"static\" degree: 2"), "parallel.sequence.degree is 2, which does not divide 3 ranks"},
      {3, Spread(128, "planner: \"static\""), "(planner static takes degrees that divide 3 ranks), holds 128 tokens"},
      {3, {"global_batch={ sequences: 2 }"}, "every rank needs a sequence: take at least 3"}};
  for (const Row& row : rows) {
    const Result late = Train(Job(row.sets, 0), row.ranks);
    EXPECT_THAT(std::string(late.status.message()), HasSubstr(row.says));
    EXPECT_EQ(ExitCodeFor(late.status), ExitCode::kConfig);
    EXPECT_TRUE(late.losses.empty());
  }
}

TEST_F(SequenceTraining, GradientCodesTravelUnderAnyPlan) {
  const auto sets = [](const std::string& zero, bool codes) {
    std::vector<std::string> all = Spread(64, "plans: DETERMINISTIC");
    all.push_back("parallel.zero=" + zero);
    all.emplace_back("comm.check_weights_every_steps=1");
    if (codes) all.emplace_back("comm.compression={ mode: UNIFORM codec: \"q8\" block: 128 min_elements: 512 }");
    return all;
  };
  for (const char* zero : {"0", "1", "2", "3"}) {
    const Result plain = Train(Job(sets(zero, false), 4), 4), coded = Train(Job(sets(zero, true), 4), 4);
    ASSERT_TRUE(plain.status.ok()) << plain.status;
    ASSERT_TRUE(coded.status.ok()) << coded.status;
    EXPECT_NE(coded.weights, plain.weights) << "codes were in force, ZeRO " << zero;
    for (size_t i = 0; i < plain.losses.size(); ++i)
      EXPECT_NEAR(coded.losses[i], plain.losses[i], 0.01 * plain.losses[i]) << "ZeRO " << zero << ", step " << i;
  }
}

TEST_F(SequenceTraining, ResumedEqualsUninterruptedWithDeterministicPlans) {
  const std::vector<std::string> sets = Spread(64, "plans: DETERMINISTIC");
  const Result whole = Train(Job(sets, 4), 4);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  std::vector<std::string> shorter = sets;
  shorter.emplace_back("duration.steps=2");
  const std::string run = folder_ + "/run";
  ASSERT_TRUE(Train(Job(shorter, 4), 4, run).status.ok());
  const Result rest = Train(Job(sets, 4), 4, run);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_EQ(rest.losses.size(), 2u);
  EXPECT_EQ(rest.weights, whole.weights);
}

TEST_F(SequenceTraining, AReplayedRunHasTheSameBits) {
  const std::string run = folder_ + "/live";
  const Result live = Train(Job(Spread(64, ""), 4), 4, run);
  ASSERT_TRUE(live.status.ok()) << live.status;
  const std::string file = run + "/plans/sequences.jsonl";
  const auto text = PosixFiles().Read(file);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto first = PlanFromJson(text->substr(0, text->find('\n')));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->step, 1);
  EXPECT_EQ(first->Text(), live.records[0].sequence_plan);
  EXPECT_GT(first->measured_step, 0);
  const Result again = Train(Job(Spread(64, absl::StrCat("plans: DETERMINISTIC replay: \"", file, "\"")), 4), 4);
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.weights, live.weights);
  for (size_t i = 0; i < live.records.size(); ++i)
    EXPECT_EQ(again.records[i].sequence_plan, live.records[i].sequence_plan);

  std::ofstream(folder_ + "/bad.jsonl") << text->substr(0, text->find('\n') / 2);
  const Result bad =
      Train(Job(Spread(64, absl::StrCat("plans: DETERMINISTIC replay: \"", folder_, "/bad.jsonl\"")), 4), 4);
  EXPECT_THAT(std::string(bad.status.message()), HasSubstr("parallel.sequence.replay: "));
  EXPECT_THAT(std::string(bad.status.message()), HasSubstr("bad.jsonl:"));
}

}  // namespace
}  // namespace shoal
