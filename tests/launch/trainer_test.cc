// The whole path: layouts equal the one-rank run, and a resumed run equals one that never stopped.
#include "launch/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/spectra.h"
#include "launch/stop_request.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "parallel/state.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/obs/run_metrics.h"
#include "tests/launch/trainer_fixture.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

TEST_F(TrainerTest, AnyLayoutEqualsTheOneRankRun) {
  const Result one = Run(Job(), 1);
  ASSERT_EQ(one.losses.size(), 8u);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.3) << "it learns";
  struct Layout {
    int ranks, threads;
    std::vector<std::string> sets;
  };
  const std::vector<Layout> layouts = {{1, 3, {}},
                                       {2, 1, {}},
                                       {3, 1, {"parallel.zero=0"}},
                                       {4, 1, {"micro_batch={ tokens: 64 }"}},
                                       {2, 1, {"parallel.recompute=BLOCK", "micro_batch={ sequences: 3 }"}},
                                       {1, 1, {"parallel.recompute=BLOCK"}},
                                       {2, 1, {"comm.bucket_mib=0.01", "comm.check_calls=true"}}};
  for (const Layout& layout : RowsToTry(layouts)) {
    const Result got = Run(Job(layout.sets), layout.ranks, "", layout.threads);
    ASSERT_EQ(got.losses.size(), one.losses.size());
    for (size_t i = 0; i < got.losses.size(); ++i) {
      EXPECT_NEAR(got.losses[i], one.losses[i], 2e-5 * one.losses[i])
          << layout.ranks << " ranks, " << (layout.sets.empty() ? "" : layout.sets[0]) << ", step " << i;
    }
  }
  // Threads and recomputation change no bit; neither does sharding the optimizer.
  EXPECT_EQ(Run(Job(), 1, "", 3).weights, one.weights);
  EXPECT_EQ(Run(Job({"parallel.recompute=BLOCK"}), 1).weights, one.weights);
  EXPECT_EQ(Run(Job({"parallel.recompute=MLP"}), 1).weights, one.weights);
  EXPECT_EQ(Run(Job({"parallel.recompute=MLP", "parallel.recompute_blocks=1"}), 1).weights, one.weights);
  EXPECT_EQ(Run(Job({"parallel.zero=0", "optim.clip_norm=0"}), 2).weights, Run(Job({"optim.clip_norm=0"}), 2).weights);
}

// Ranks without sequences in some micro-batches, tied heads, recomputation, dropout, buckets of all sizes.
TEST_F(TrainerTest, StagesOfZeroEqualTheOneRankRun) {
  const std::vector<std::vector<std::string>> jobs = {
      {},
      {"micro_batch={ tokens: 64 }"},
      {"micro_batch={ tokens: 64 }", "model.transformer.preset=GPT2", "model.transformer.tied_head=true",
       "model.transformer.kv_heads=4", "comm.bucket_mib=0.02"},
      {"parallel.recompute=BLOCK", "comm.bucket_mib=0.01", "comm.check_calls=true"},
      {"parallel.recompute=MLP", "global_batch={ sequences: 5 }", "micro_batch={ sequences: 1 }",
       "comm.bucket_mib=0.03", "comm.check_calls=true"},
      {"runtime.compute=BF16", "micro_batch={ tokens: 128 }", "comm.bucket_mib=0.02"}};
  for (const std::vector<std::string>& sets : RowsToTry(jobs)) {
    const Result one = Run(Job(sets), 1);
    const bool bf16 = !sets.empty() && sets[0] == "runtime.compute=BF16", micros = Job(sets).has_micro_batch();
    for (const int ranks : RowsToTry<int>({1, 2, 3, 4})) {
      auto with = sets;
      with.push_back("parallel.zero=1");
      const Result first = Run(Job(with), ranks);
      for (const int zero : {2, 3}) {
        with.back() = absl::StrCat("parallel.zero=", zero);
        const std::string where = absl::StrCat(sets.empty() ? "" : sets[0], ", ", ranks, " ranks, stage ", zero);
        const Result got = Run(Job(with), ranks);
        ASSERT_EQ(got.losses.size(), one.losses.size()) << where;
        for (size_t i = 0; i < got.losses.size(); ++i)
          EXPECT_NEAR(got.losses[i], one.losses[i], (bf16 ? 1e-2 : 2e-5) * one.losses[i]) << where << ", step " << i;
        EXPECT_NEAR(got.outcome.eval_loss, first.outcome.eval_loss, bf16 ? 1e-2 : 2e-5 * one.losses[0]) << where;
        if (micros && ranks > 1) continue;
        EXPECT_EQ(got.losses, first.losses) << where;
        EXPECT_EQ(got.weights, first.weights) << where;
      }
    }
  }
}

TEST_F(TrainerTest, ResumesUnderAnotherStageAndNumberOfRanks) {
  const auto job = [&](int zero, int steps) {
    return Job({absl::StrCat("parallel.zero=", zero), absl::StrCat("duration.steps=", steps),
                "optim.schedule.shape=CONSTANT", "optim.ema={ decay: 0.8 }", "comm.bucket_mib=0.02"});
  };
  const Result whole = Run(job(0, 8), 1);
  const std::string run = folder_ + "/run";
  int steps = 0;
  Result last;
  for (const auto& [zero, ranks] :
       std::vector<std::pair<int, int>>{{3, 2}, {1, 3}, {2, 4}, {3, 3}, {0, 2}, {3, 1}, {2, 2}, {3, 4}})
    last = Run(job(zero, ++steps), ranks, run);
  EXPECT_NEAR(last.losses.back(), whole.losses.back(), 2e-5 * whole.losses.back());
  EXPECT_NEAR(last.outcome.eval_loss, whole.outcome.eval_loss, 2e-5 * whole.outcome.eval_loss);
}

// Evaluations, averages, hashes, spectra, the gradient check, Muon's whole matrices and LAMB's norms.
TEST_F(TrainerTest, WhatReadsWholeWeightsWorksAtEveryStage) {
  for (const char* optimizer : RowsToTry<const char*>({"optim.muon={}", "optim.lamb={}", "optim.adamw={}"})) {
    const auto job = [&](int zero, const char* name) {
      return std::pair{
          Job({optimizer, "optim.clip_norm=0", absl::StrCat("parallel.zero=", zero), "optim.ema={ decay: 0.8 }",
               "eval.every={ steps: 3 }", "comm.check_weights_every_steps=2", "comm.bucket_mib=0.02",
               "log.spectral_every_steps=4", "debug.grad_check=attention.q.weight|final_norm"}),
          folder_ + "/" + name + std::to_string(zero)};
    };
    const auto [plain, folder] = job(1, optimizer);
    const Result want = Run(plain, 3, folder);
    for (const int zero : {2, 3}) {
      const auto [sharded, run] = job(zero, optimizer);
      const Result got = Run(sharded, 3, run);
      EXPECT_EQ(got.weights, want.weights) << optimizer << " stage " << zero;
      EXPECT_EQ(got.outcome.eval_loss, want.outcome.eval_loss) << optimizer << " stage " << zero;
      const auto spectra = ReadMetrics(run), expected = ReadMetrics(folder);
      ASSERT_TRUE(spectra.ok() && expected.ok());
      EXPECT_EQ(spectra->back()["spectral"], expected->back()["spectral"]) << optimizer << " stage " << zero;
      EXPECT_FALSE(spectra->back()["spectral"].empty());
    }
  }
}

TEST_F(TrainerTest, ResumedEqualsUninterrupted) {
  for (const int ranks : {1, 2}) {
    const std::string run = folder_ + "/run" + std::to_string(ranks);
    const Result whole = Run(Job({"optim.schedule.shape=CONSTANT", "optim.guard.z_score=50"}), ranks);
    Run(Job({"optim.schedule.shape=CONSTANT", "optim.guard.z_score=50", "duration.steps=3"}), ranks, run);
    const Result rest = Run(Job({"optim.schedule.shape=CONSTANT", "optim.guard.z_score=50"}), ranks, run);
    EXPECT_EQ(rest.losses.size(), 5u);
    EXPECT_EQ(rest.weights, whole.weights) << ranks << " ranks";
  }
}

TEST_F(TrainerTest, StagesThatAreNotAreRefused) {
  const auto message = [&](const std::vector<std::string>& sets) {
    return std::string(Resolved(sets, 2).status().message());
  };
  EXPECT_THAT(message({"parallel.zero=4"}),
              testing::HasSubstr("parallel.zero is 4; the stages are 0 to 3, the nearest is 3"));
  EXPECT_THAT(message({"parallel.zero=3", "comm.fake=true"}),
              testing::HasSubstr("comm.fake is true and parallel.zero is 3"));
}

TEST_F(TrainerTest, WidthRulesAreTheSameOnRanksAndResumed) {
  using Row = std::pair<const char*, const char*>;
  for (const Row& row :
       RowsToTry<Row>({{"MUP", "FP32"}, {"MUP", "BF16"}, {"ROBUST_DECAY", "FP32"}, {"ROBUST_DECAY", "BF16"}})) {
    const char *const preset = row.first, *const compute = row.second;
    const auto job = [&](std::vector<std::string> more) {
      more.insert(more.end(), {std::string("optim.width_rule={ preset: ") + preset + " base_width: 16 }",
                               std::string("runtime.compute=") + compute, "optim.schedule.shape=CONSTANT"});
      return Job(more);
    };
    const std::string run = folder_ + "/run_" + preset + compute;
    const double close = compute == std::string("FP32") ? 2e-5 : 2e-2;
    const Result one = Run(job({}), 1), two = Run(job({}), 2), plain = Run(job({"parallel.zero=0"}), 3);
    ASSERT_EQ(one.losses.size(), 8u);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(two.losses[i], one.losses[i], close * one.losses[i]) << preset << " " << compute << ", step " << i;
      EXPECT_NEAR(plain.losses[i], one.losses[i], close * one.losses[i]) << preset << " " << compute << ", step " << i;
    }
    Run(job({"duration.steps=3"}), 2, run);
    EXPECT_EQ(Run(job({}), 2, run).weights, two.weights) << preset << " " << compute;
  }
}

TEST_F(TrainerTest, ResumesOnAnotherNumberOfRanks) {
  const std::string run = folder_ + "/run";
  const Result whole = Run(Job({"optim.schedule.shape=CONSTANT"}), 1);
  Run(Job({"optim.schedule.shape=CONSTANT", "duration.steps=3"}), 3, run);
  const Result rest = Run(Job({"optim.schedule.shape=CONSTANT"}), 2, run);
  ASSERT_EQ(rest.losses.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(rest.losses[i], whole.losses[3 + i], 2e-5 * whole.losses[3 + i]);
}

// Nothing that codes left out is lost on other ranks: under plain SGD, what a step applies and what it leaves are
// together the gradient, the same with and without residuals, and the residuals of the run before.
TEST_F(TrainerTest, ResidualsGoOnOnAnotherNumberOfRanks) {
  const auto run = [&](const std::string& name) { return folder_ + "/" + name; };
  const auto job = [&](const std::string& resume, int steps) {
    return Job({"comm.compression={ mode: UNIFORM codec: \"q4\" block: 128 min_elements: 512 resume: " + resume + " }",
                "parallel.zero=0", "optim.sgd={ momentum: 0 }", "optim.clip_norm=0", "optim.learning_rate=0.5",
                "optim.schedule={ shape: CONSTANT }", absl::StrCat("duration.steps=", steps)});
  };
  // Of a weight: its values, and the sum over ranks of what codes left of it.
  const auto read = [&](const std::string& from, const char* part, int ranks) {
    const auto reader = CheckpointReader::Open(*FindCheckpoint(run(from)));
    const Tensor all = *reader->Read(absl::StrCat("blocks.0.mlp.up.weight", part));
    std::vector<double> sum(static_cast<size_t>(all.size() / ranks));
    for (int64_t i = 0; i < all.size(); ++i) sum[static_cast<size_t>(i) % sum.size()] += all.data<float>()[i];
    return sum;
  };
  Run(job("FOLD", 3), 2, run("before"));
  for (const char* resume : {"FOLD", "RESET", "EXACT"})
    std::filesystem::copy(run("before"), run(resume), std::filesystem::copy_options::recursive);
  const absl::Status refused = Start({.job = job("EXACT", 4), .run_dir = run("EXACT")}, 3).status;
  EXPECT_EQ(ExitCodeFor(refused), ExitCode::kConfig);
  EXPECT_THAT(refused.message(), testing::HasSubstr("residuals of gradient codes of 2 ranks, and this run has 3"));
  EXPECT_EQ(Run(job("FOLD", 4), 3, run("FOLD")).losses, Run(job("RESET", 4), 3, run("RESET")).losses);
  const auto carried = read("before", "/residual", 2), folded = read("FOLD", "/residual", 3),
             fresh = read("RESET", "/residual", 3), with = read("FOLD", "", 1), without = read("RESET", "", 1);
  for (size_t i = 0; i < with.size(); ++i)
    ASSERT_NEAR(folded[i] - fresh[i] + (without[i] - with[i]) / 0.5, carried[i], 1e-6) << i;
  EXPECT_GT(*std::max_element(carried.begin(), carried.end()), 1e-4) << "there is something to lose";
  EXPECT_EQ(Run(job("FOLD", 8), 3, run("FOLD")).losses.size(), 4u) << "it goes on";
}

TEST_F(TrainerTest, AnotherOptimizersCheckpointIsRefusedOrItsMomentsAreLeft) {
  const std::string run = folder_ + "/run";
  const Result adamw = Run(Job({"duration.steps=3"}), 2, run);
  TrainerOptions options{.job = Job({"optim.sgd={ momentum: 0.9 }", "duration.steps=5"}), .run_dir = run};
  const absl::Status refused = Start(options, 2).status;
  EXPECT_THAT(refused.message(), testing::HasSubstr("the optimizer state of AdamW and this job trains with SGD"));
  EXPECT_EQ(ExitCodeFor(refused), ExitCode::kConfig);
  options.reset_optimizer = ResetOptimizer::kYes;
  const Result sgd = Start(options, 2);
  ASSERT_EQ(sgd.status, absl::OkStatus());
  EXPECT_EQ(sgd.losses.size(), 2u) << "it goes on at step 4";
  EXPECT_EQ(sgd.outcome.step, 5);
  // The same data with the same weights: what comes first is the loss that the first optimizer would have seen.
  EXPECT_EQ(sgd.losses[0], Run(Job({"duration.steps=4"}), 2).losses[3]);
}

TEST_F(TrainerTest, AveragesAreEvaluatedAndLeaveTrainingAlone) {
  const std::vector<std::string> sets = {"optim.ema={ decay: 0.7 }", "eval.every={ steps: 3 }"};
  const Result plain = Run(Job(), 1), one = Run(Job(sets), 1);
  EXPECT_EQ(one.weights, plain.weights) << "the weights are back after each evaluation";
  EXPECT_GT(one.outcome.eval_loss, 1.0001 * plain.outcome.eval_loss) << "averages lag behind while it learns";
  EXPECT_EQ(Run(Job({"optim.ema={ decay: 0 }"}), 1).outcome.eval_loss, plain.outcome.eval_loss);
  EXPECT_EQ(Run(Job(sets), 1, "", 3).outcome.eval_loss, one.outcome.eval_loss) << "threads";
  for (const auto& layout : std::vector<std::pair<int, std::string>>{
           {2, "parallel.zero=1"}, {3, "parallel.zero=0"}, {4, "micro_batch={ tokens: 64 }"}}) {
    auto with = sets;
    with.push_back(layout.second);
    const Result got = Run(Job(with), layout.first);
    EXPECT_NEAR(got.outcome.eval_loss, one.outcome.eval_loss, 2e-5 * one.outcome.eval_loss) << layout.second;
  }
}

TEST_F(TrainerTest, ResumedAveragesEqualUninterrupted) {
  int number = 0;
  using Row = std::pair<const char*, const char*>;
  const char *const half_life = "optim.ema={ half_life { tokens: 900 } }", *const ramp =
                                                                               "optim.ema={ decay: 0.9 ramp_up: true }";
  for (const auto& [compute, ema] :
       RowsToTry<Row>({{"FP32", half_life}, {"FP32", ramp}, {"BF16", half_life}, {"BF16", ramp}})) {
    const std::string run = folder_ + "/run" + std::to_string(number++);
    const std::vector<std::string> sets = {"optim.schedule.shape=CONSTANT", ema, "eval.every={ steps: 2 }",
                                           std::string("runtime.compute=") + compute};
    auto part = sets;
    part.emplace_back("duration.steps=3");
    const Result whole = Run(Job(sets), 2);
    Run(Job(part), 2, run);
    const Result rest = Run(Job(sets), 2, run);
    EXPECT_EQ(rest.losses.size(), 5u);
    EXPECT_EQ(rest.weights, whole.weights);
    EXPECT_EQ(rest.outcome.eval_loss, whole.outcome.eval_loss) << ema << " " << compute;
  }
}

TEST_F(TrainerTest, AveragesMayBeginInARunThatHadNone) {
  const std::string run = folder_ + "/run";
  Run(Job({"duration.steps=3"}), 1, run);
  const Result rest = Run(Job({"optim.ema={ decay: 0.9 }"}), 2, run);
  EXPECT_EQ(rest.outcome.step, 8);
  const auto folder = FindCheckpoint(run);
  ASSERT_TRUE(folder.ok()) << folder.status();
  const auto reader = CheckpointReader::Open(*folder);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->manifest().integers.at(kAverageUpdates), 5);
  EXPECT_NE(reader->ReadWeight("tokens.weight", Weights::kAverages)->data<float>()[0],
            reader->ReadWeight("tokens.weight", Weights::kTrained)->data<float>()[0]);
}

// Small batches of a run that grows them, with a constant rate.
const std::vector<std::string> kGrowth = {"global_batch={ tokens: 128 }", "micro_batch={ tokens: 64 }",
                                          "duration={ samples: 200 }", "optim.schedule={ shape: CONSTANT }",
                                          "optim.batch_growth={ eta: 0.7 test_every: 2 max { tokens: 640 } }"};
std::vector<std::string> With(std::vector<std::string> sets, const std::string& more) {
  sets.push_back(more);
  return sets;
}

// Of every step that metrics.jsonl has, in order.
std::vector<double> Metric(const std::string& run_dir, const char* field) {
  std::vector<double> values;
  std::ifstream in(run_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.contains(field) && record[field].is_number()) values.push_back(record[field].get<double>());
  }
  return values;
}

TEST_F(TrainerTest, BatchesGrowInMicroBatchesAndNeverShrink) {
  for (const int ranks : RowsToTry<int>({1, 2, 3})) {
    const std::string run = folder_ + "/run" + std::to_string(ranks);
    const Result result = Run(Job(kGrowth), ranks, run);
    const auto batches = Metric(run, "batch"), samples = Metric(run, "samples");
    ASSERT_EQ(batches.size(), result.losses.size());
    EXPECT_EQ(batches.front(), 128);
    for (size_t i = 1; i < batches.size(); ++i) {
      EXPECT_GE(batches[i], batches[i - 1]) << "step " << i + 1;
      EXPECT_TRUE(batches[i] == 128 || static_cast<int64_t>(batches[i]) % (64 * ranks) == 0) << batches[i];
      EXPECT_TRUE(i % 2 == 0 || batches[i] == batches[i - 1]) << "noise is measured in every second step";
    }
    EXPECT_GT(batches.back(), 128) << ranks << " ranks";
    EXPECT_LE(batches.back(), 640);
    EXPECT_GT(samples.back(), samples.front());
    EXPECT_FALSE(Metric(run, "noise_scale").empty());
    EXPECT_EQ(Run(Job(kGrowth), ranks, "", 3).weights, result.weights) << "threads";
  }
}

TEST_F(TrainerTest, ResumedGrowthEqualsUninterrupted) {
  for (const int ranks : {1, 2}) {
    const std::string run = folder_ + "/run" + std::to_string(ranks),
                      one_go = folder_ + "/whole" + std::to_string(ranks);
    const auto sets = With(kGrowth, "optim.ema={ half_life { samples: 30 } }");
    const Result whole = Run(Job(sets), ranks, one_go);
    for (const char* samples : {"9", "40", "95"}) {
      Run(Job(With(sets, std::string("duration.samples=") + samples)), ranks, run);
    }
    const Result rest = Run(Job(sets), ranks, run);
    EXPECT_LT(rest.losses.size(), whole.losses.size());
    EXPECT_EQ(rest.weights, whole.weights) << ranks << " ranks";
    EXPECT_EQ(rest.outcome.eval_loss, whole.outcome.eval_loss);
    EXPECT_EQ(Metric(run, "batch"), Metric(one_go, "batch"));
    EXPECT_EQ(Metric(run, "noise_scale"), Metric(one_go, "noise_scale"));
  }
}

// Every micro-batch of every rank is a group of its own there.
TEST_F(TrainerTest, StagesThatReduceEachMicroBatchMeasureNoiseBetweenThem) {
  for (const char* zero : {"parallel.zero=2", "parallel.zero=3"}) {
    const std::string run = folder_ + "/run_" + zero, one_go = folder_ + "/whole_" + zero;
    const auto sets = With(kGrowth, zero);
    const Result whole = Run(Job(sets), 2, one_go);
    Run(Job(With(sets, "duration.samples=40")), 2, run);
    EXPECT_EQ(Run(Job(sets), 2, run).weights, whole.weights) << zero;
    const auto noise = Metric(one_go, "noise_scale");
    ASSERT_FALSE(noise.empty());
    EXPECT_GT(*std::max_element(noise.begin(), noise.end()), 0);
    EXPECT_GT(Metric(one_go, "batch").back(), 128) << zero;
  }
}

TEST_F(TrainerTest, AGrownBatchStaysOnAnotherNumberOfRanks) {
  const std::string run = folder_ + "/run";
  Run(Job(With(kGrowth, "duration.samples=100")), 3, run);
  const auto before = Metric(run, "batch");
  Run(Job(kGrowth), 1, run);
  const auto after = Metric(run, "batch");
  ASSERT_GT(after.size(), before.size());
  EXPECT_GT(before.back(), 128);
  EXPECT_TRUE(std::is_sorted(after.begin(), after.end()));
}

TEST_F(TrainerTest, GrowthSaysWhatItCannotDo) {
  struct Row {
    int ranks;
    std::string set, message;
  };
  const std::vector<Row> rows = {
      {0, "optim.batch_growth={ eta: 0.5 }", "batch_growth.max is the batch to grow to, in the unit of global_batch"},
      {0, "optim.batch_growth.max={ sequences: 9 }", "in the unit of global_batch; write max { tokens: 2048 }"},
      {0, "optim.batch_growth.max={ tokens: 128 }", "the batch cannot grow"},
      {0, "micro_batch={ sequences: 2 }", "write micro_batch in the unit of global_batch, micro_batch { tokens: N }"},
      {0, "global_batch={ tokens: 95 }", "one sequence may have 48; take at least 96"},
      {0, "optim.schedule.shape=COSINE", "duration is in steps and optim.batch_growth is set: steps become larger"},
      {0, "optim.schedule.warmup={ steps: 2 }", "optim.schedule.warmup is in steps and optim.batch_growth is set"},
      {1, "micro_batch={ tokens: 65 }", "take a micro_batch of at most 64, or 2 ranks"},
      {4, "optim.batch_growth.max={ tokens: 130 }", "132 is the least that lets 128 grow"}};
  for (const Row& row : rows) {
    // In a run of steps, which grows as long as its rate is constant.
    const absl::Status status = Resolved(With(With(kGrowth, "duration={ steps: 9 }"), row.set), row.ranks).status();
    EXPECT_THAT(status.message(), testing::HasSubstr(row.message)) << row.set;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kConfig);
  }
  // Under mpirun the number of ranks is known only when they have started.
  const absl::Status late = Start({.job = Job(With(kGrowth, "micro_batch={ tokens: 100 }")), .run_dir = ""}, 1).status;
  EXPECT_THAT(late.message(), testing::HasSubstr("take a micro_batch of at most 64, or 2 ranks"));
  EXPECT_EQ(ExitCodeFor(late), ExitCode::kConfig);
}

TEST_F(TrainerTest, Bf16FollowsFp32) {
  const Result wide = Run(Job(), 1), narrow = Run(Job({"runtime.compute=BF16"}), 2);
  for (size_t i = 0; i < wide.losses.size(); ++i) EXPECT_NEAR(narrow.losses[i], wide.losses[i], 0.03 * wide.losses[i]);
}

TEST_F(TrainerTest, AStopFileEndsTheRunWithACheckpoint) {
  const std::string run = folder_ + "/run";
  std::filesystem::create_directories(run + "/checkpoints");
  ASSERT_TRUE(LeaveStopFile(run));
  const Result result = Run(Job(), 2, run);
  EXPECT_EQ(result.outcome.end, TrainOutcome::End::kStopped);
  EXPECT_EQ(result.outcome.step, 1);
  EXPECT_TRUE(std::filesystem::exists(run + "/checkpoints/step-00000001/manifest.json"));
}

TEST_F(TrainerTest, DivergenceIsItsOwnError) {
  const config::Job job = Job({"optim.learning_rate=1e5", "optim.clip_norm=0", "optim.guard.max_skipped=1",
                               "duration.steps=60", "optim.schedule.shape=CONSTANT"});
  ThreadPool pool(1);
  const absl::Status status = RunThreadRanks(1, {}, [&](int, Communicator& world) {
    RankContext rank{.rank = 0, .size = 1, .host = "", .pool = std::make_unique<ThreadPool>(1)};
    return Train(rank, world, {.job = job, .run_dir = "", .console = TrainerOptions::Console::kQuiet}).status();
  });
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kDiverged) << status;
}

TEST_F(TrainerTest, GradCheckPassesBeforeTrainingAndRefusesWhatMatchesNothing) {
  const auto status = [&](const std::string& pattern) {
    return RunThreadRanks(1, {}, [&](int, Communicator& world) {
      RankContext rank{.rank = 0, .size = 1, .host = "", .pool = std::make_unique<ThreadPool>(1)};
      const TrainerOptions options{.job = Job({"duration.steps=1", "debug.grad_check=" + pattern}),
                                   .run_dir = "",
                                   .console = TrainerOptions::Console::kQuiet};
      return Train(rank, world, options).status();
    });
  };
  EXPECT_EQ(status("blocks.1|final_norm"), absl::OkStatus());
  EXPECT_THAT(status("no such name").message(), testing::HasSubstr("no parameter's name matches"));
  EXPECT_THAT(status("(").message(), testing::HasSubstr("is no regular expression"));
}

TEST_F(TrainerTest, SpectraAreMeasuredOnScheduleAndFittedOverWidths) {
  std::vector<std::string> runs;
  for (const int width : {32, 64}) {
    runs.push_back(absl::StrCat(folder_, "/run", width));
    const config::Job job = Job({absl::StrCat("model.transformer.width=", width), "log.spectral_every_steps=4",
                                 "optim.schedule.shape=CONSTANT", "optim.adamw.weight_decay=150"});
    Run(job, 2, runs.back());
    ASSERT_EQ(WriteFileAtomically(PosixFiles(), runs.back() + "/job.textproto", JobText(job)), absl::OkStatus());
  }
  const auto records = ReadMetrics(runs[0]);
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_EQ(records->size(), 8u);
  for (const auto& record : *records) EXPECT_EQ(record.contains("spectral"), record["step"].get<int>() % 4 == 0);
  const auto& last = records->back()["spectral"];
  EXPECT_EQ(last.size(), 14u) << "q, k, v, out, gate, up and down of two layers";
  const double sigma = last["blocks.1.mlp.down.weight"]["sigma"], gain = last["blocks.1.mlp.down.weight"]["rms_gain"];
  const auto one = InspectSpectra({runs[0]}), both = InspectSpectra(runs);
  ASSERT_TRUE(one.ok() && both.ok()) << one.status() << both.status();
  EXPECT_THAT(*one, testing::HasSubstr(absl::StrFormat(" %11.5g %11.5g ", sigma, gain))) << "of the same weights";
  EXPECT_THAT(*one, testing::Not(testing::HasSubstr("kind of matrix")));
  EXPECT_THAT(*both, testing::HasSubstr("blocks.*.attention.q.weight                    4 "));
  EXPECT_THAT(*both, testing::HasSubstr("optim { width_rule { matrix { weight_decay: "));

  // The law is about a steady state at one rate.
  const auto refit = [&](const std::vector<std::string>& sets) {
    EXPECT_TRUE(WriteFileAtomically(PosixFiles(), runs[0] + "/job.textproto", JobText(Job(sets))).ok());
    return InspectSpectra(runs).value();
  };
  EXPECT_THAT(refit({}), testing::HasSubstr("no fit with " + runs[0] + ": its rate is 0.1 of the peak"));
  EXPECT_THAT(refit({"optim.schedule.shape=CONSTANT"}),
              testing::HasSubstr("no fit: the run of width 32 is not in its steady"));
  EXPECT_THAT(refit({"optim.schedule.shape=CONSTANT", "optim.sgd={}"}), testing::HasSubstr("and the fit is AdamW's"));
}

TEST_F(TrainerTest, TraceHoldsTheStepsOfEveryRankAndChangesNothing) {
  const Result plain = Run(Job(), 2);
  const std::string run_dir = folder_ + "/run";
  const Result traced = Run(Job({"log.trace=true", "log.trace_first_step=3", "log.trace_steps=2"}), 2, run_dir);
  EXPECT_EQ(plain.weights, traced.weights);
  const auto events = nlohmann::json::parse(PosixFiles().Read(run_dir + "/trace/all.json").value());
  std::map<std::string, int> count;
  for (const auto& e : events) ++count[e["name"].get<std::string>()];
  EXPECT_EQ(count["step"], 4) << "two steps of two ranks";
  EXPECT_EQ(count["optimizer"], 4);
  EXPECT_EQ(count["step scalars"], 8) << "begin and end of a collective";
  EXPECT_GT(count["Matmul.NT"], 20);
}

class ImageTrainerTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    std::filesystem::create_directories(folder_ + "/images");
    WriteIdx("train", 60);
    WriteIdx("t10k", 24);
  }
  // 8 x 8 grey squares: the class is where the bright corner is.
  void WriteIdx(const std::string& part, int images) const {
    std::string pixels, labels;
    for (int i = 0; i < images; ++i) {
      labels.push_back(static_cast<char>(i % 4));
      for (int p = 0; p < 64; ++p) {
        const int corner = (p / 32) * 2 + (p % 8) / 4;
        pixels.push_back(static_cast<char>((corner == i % 4 ? 150 : 20) + (31 * i + 7 * p) % 60));
      }
    }
    const auto header = [images](int dimensions) {
      std::string bytes = {0, 0, 8, static_cast<char>(dimensions), 0, 0, 0, static_cast<char>(images)};
      for (int d = 1; d < dimensions; ++d) bytes += std::string("\0\0\0\x08", 4);
      return bytes;
    };
    std::ofstream(folder_ + "/images/" + part + "-images-idx3-ubyte", std::ios::binary) << header(3) << pixels;
    std::ofstream(folder_ + "/images/" + part + "-labels-idx1-ubyte", std::ios::binary) << header(1) << labels;
  }
  absl::StatusOr<config::Job> Resolve(const std::vector<std::string>& sets, int ranks) const {
    return ResolvedText(absl::StrFormat(R"(
      model { resnet { preset: CUSTOM block: BASIC stem: CIFAR depths: [1, 1] width: 8 } }
      data { images { path: "%s" crop: PAD padding: 1 } }
      global_batch { images: 12 } duration { steps: 8 }
      optim { sgd { momentum: 0.9 } learning_rate: 0.05 schedule { shape: CONSTANT } }
    )",
                                        folder_ + "/images"),
                        sets, ranks);
  }
  config::Job Job(const std::vector<std::string>& sets = {}) const {
    auto job = Resolve(sets, 0);
    EXPECT_TRUE(job.ok()) << job.status();
    return *job;
  }
};

TEST_F(ImageTrainerTest, RanksEqualTheOneRankRunWithStatisticsOfAll) {
  const Result one = Run(Job({"model.resnet.sync_norm=true"}), 1);
  ASSERT_EQ(one.losses.size(), 8u);
  EXPECT_EQ(Run(Job({"model.resnet.sync_norm=true"}), 1, "", 3).weights, one.weights) << "threads";
  EXPECT_EQ(Run(Job({"model.resnet.sync_norm=true", "parallel.recompute=BLOCK"}), 1).weights, one.weights);
  for (const int ranks : {2, 3, 4}) {
    const Result got = Run(Job({"model.resnet.sync_norm=true"}), ranks);
    ASSERT_EQ(got.losses.size(), one.losses.size());
    for (size_t i = 0; i < got.losses.size(); ++i) EXPECT_NEAR(got.losses[i], one.losses[i], 1e-4 * one.losses[0]);
    EXPECT_NEAR(got.outcome.eval_loss, one.outcome.eval_loss, 1e-3 * one.outcome.eval_loss);
  }
}

TEST_F(ImageTrainerTest, StagesOfZeroEqualEachOther) {
  for (const int ranks : {2, 3}) {
    for (const char* norm : {"model.resnet.sync_norm=true", "model.resnet.sync_norm=false"}) {
      const auto job = [&](int zero) {
        return Job({norm, absl::StrCat("parallel.zero=", zero), "comm.bucket_mib=0.01"});
      };
      const Result want = Run(job(1), ranks);
      for (const int zero : {2, 3}) {
        const Result got = Run(job(zero), ranks);
        EXPECT_EQ(got.weights, want.weights) << ranks << " ranks, stage " << zero << ", " << norm;
        EXPECT_EQ(got.outcome.eval_loss, want.outcome.eval_loss) << ranks << " ranks, stage " << zero;
      }
    }
  }
  // 12 images on 5 ranks in micro-batches of 1: some ranks have no third one.
  const auto uneven = [&](int zero) {
    return Job({"micro_batch={ images: 1 }", absl::StrCat("parallel.zero=", zero)});
  };
  const Result want = Run(uneven(1), 5), got = Run(uneven(2), 5);
  for (size_t i = 0; i < want.losses.size(); ++i) EXPECT_NEAR(got.losses[i], want.losses[i], 1e-3 * want.losses[0]);
  const auto refused = Resolve({"parallel.zero=3"}, 5);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.status().message()),
              testing::HasSubstr("global_batch.images is 12 and the job has 5 ranks; the nearest is 10"));
}

TEST_F(ImageTrainerTest, LearnsClassesThatItHasNotSeen) {
  const Result result = Run(Job({"duration.steps=80"}), 2);
  EXPECT_LT(result.losses.back(), 0.5 * result.losses.front());
  EXPECT_GT(result.outcome.eval_accuracy, 0.9);
}

TEST_F(ImageTrainerTest, ResumedEqualsUninterruptedWithItsRunningStatistics) {
  for (const int ranks : {1, 2}) {
    const std::string run = folder_ + "/run" + std::to_string(ranks);
    const Result whole = Run(Job(), ranks);
    Run(Job({"duration.steps=3"}), ranks, run);
    const Result rest = Run(Job(), ranks, run);
    EXPECT_EQ(rest.losses.size(), 5u);
    EXPECT_EQ(rest.weights, whole.weights) << ranks << " ranks";
    EXPECT_EQ(rest.outcome.eval_loss, whole.outcome.eval_loss) << "made with the running statistics";
    EXPECT_EQ(rest.outcome.eval_accuracy, whole.outcome.eval_accuracy);
  }
}

TEST_F(ImageTrainerTest, AveragesCoverRunningStatistics) {
  const std::vector<std::string> sets = {"optim.ema={ decay: 0.8 }", "duration.steps=20"};
  const std::string run = folder_ + "/run";
  const Result whole = Run(Job(sets), 2);
  Run(Job({"optim.ema={ decay: 0.8 }", "duration.steps=7"}), 2, run);
  const Result rest = Run(Job(sets), 2, run);
  EXPECT_EQ(rest.weights, whole.weights);
  EXPECT_EQ(rest.outcome.eval_loss, whole.outcome.eval_loss);
  const CheckpointReader reader = *CheckpointReader::Open(*FindCheckpoint(run));
  const Tensor average = *reader.ReadWeight("stem.0.norm.running_mean", Weights::kAverages);
  const Tensor trained = *reader.ReadWeight("stem.0.norm.running_mean", Weights::kTrained);
  EXPECT_NE(average.data<float>()[0], trained.data<float>()[0]);
}

TEST_F(ImageTrainerTest, BatchesOfImagesGrow) {
  const std::vector<std::string> sets = {"global_batch={ images: 12 }", "micro_batch={ images: 6 }",
                                         "duration={ samples: 400 }",
                                         "optim.batch_growth={ eta: 0.5 test_every: 2 max { images: 60 } }"};
  for (const int ranks : {1, 2}) {
    const std::string run = folder_ + "/run" + std::to_string(ranks);
    const Result whole = Run(Job(sets), ranks);
    Run(Job(With(sets, "duration.samples=100")), ranks, run);
    const Result rest = Run(Job(sets), ranks, run);
    EXPECT_EQ(rest.weights, whole.weights) << "resumed, " << ranks << " ranks";
    const auto batches = Metric(run, "batch");
    EXPECT_TRUE(std::is_sorted(batches.begin(), batches.end()));
    EXPECT_GT(batches.back(), 12);
    EXPECT_LE(batches.back(), 60);
    EXPECT_EQ(static_cast<int64_t>(batches.back()) % (6 * ranks), 0);
  }
}

TEST_F(ImageTrainerTest, AGrownBatchWithStatisticsOfAllRanksNeedsEqualShares) {
  const std::string run = folder_ + "/run";
  const std::vector<std::string> sets = {"global_batch={ images: 12 }", "micro_batch={ images: 4 }",
                                         "model.resnet.sync_norm=true", "duration={ samples: 200 }",
                                         "optim.batch_growth={ eta: 0.1 test_every: 2 max { images: 16 } }"};
  Run(Job(With(sets, "duration.samples=100")), 2, run);
  ASSERT_EQ(Metric(run, "batch").back(), 16);
  const absl::Status status = Start({.job = Job(sets), .run_dir = run}, 3).status;
  EXPECT_THAT(status.message(), testing::HasSubstr("has grown to 16 images and the job has 3 ranks"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kConfig);
}

TEST_F(ImageTrainerTest, StatisticsOfAllRanksTakeEqualShares) {
  const auto job = Resolve({"model.resnet.sync_norm=true"}, 5);
  ASSERT_FALSE(job.ok());
  EXPECT_THAT(job.status().message(),
              testing::HasSubstr("global_batch.images is 12 and the job has 5 ranks; the nearest is 10"));
}

}  // namespace
}  // namespace shoal
