// Plans of gradient codecs in training: measured, made, broadcast, put into force, followed, and kept over restarts.
#include "parallel/compression_control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "parallel/checkpoint/checkpoint_store.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "tests/parallel/pointers.h"

namespace shoal {
namespace {

using config::CompressionConfig;
using testing::HasSubstr;

// Layers whose gradients differ a hundredfold, so that a plan has something to choose.
std::vector<Param> UnevenParams() {
  std::vector<Param> params;
  const std::vector<std::pair<std::string, Shape>> shapes = {{"a.weight", {64, 64}},
                                                             {"a.bias", {64}},
                                                             {"b.weight", {96, 50}},
                                                             {"c.weight", {128, 40}},
                                                             {"d.weight", {32, 200}}};
  for (const auto& [name, shape] : shapes)
    params.push_back({.name = name, .shape = shape, .id = static_cast<int>(params.size())});
  return params;
}
float UnevenGrad(int rank, int64_t step, int param, int64_t i) {
  const float scale[] = {1, 1, 0.3F, 0.03F, 0.01F};
  return scale[param] * Rng({3, RngPurpose::kTest, static_cast<uint64_t>(param)})
                            .Normal(static_cast<uint64_t>(rank * 1000 + step), static_cast<uint64_t>(i));
}

// A gradient of rank 2 that all ranks agree about, but for a little.
float RankTwoGrad(int rank, int64_t step, int param, int64_t row, int64_t column) {
  const Rng rng({4, RngPurpose::kTest, static_cast<uint64_t>(param)});
  float sum = 0.001F * UnevenGrad(rank, step, param, row * 1000 + column);
  for (const uint64_t of : {0, 1})
    sum += rng.Normal(2 * of, static_cast<uint64_t>(row)) * rng.Normal(2 * of + 1, static_cast<uint64_t>(column));
  return sum;
}

CompressionConfig Planned(CompressionConfig::Mode mode) {
  CompressionConfig config;
  config.set_mode(mode);
  config.set_codec("q5");
  config.set_block(64);
  config.set_min_elements(100);
  config.set_warmup_steps(6);
  config.set_table_steps(2);
  config.set_lead_steps(2);
  config.set_replan_every_steps(8);
  return config;
}

struct Steps {
  CompressionConfig config = Planned(CompressionConfig::LGRECO_BYTES);
  int ranks = 3, zero = 0, micros = 1;
  int64_t from_step = 1, steps = 12;
  int64_t skipped = -1, bad = -1;  // a step not taken; one whose gradient holds a NaN on one rank, and so is not taken
  bool takes_bad = false;          // the step with the NaN counts, as with optim.guard { skip_non_finite: false }
  int64_t absent = -1;             // a step that no rank begins
  float growth = 1;                // of the last layer's gradient after step 13
  int64_t growth_until = 1000;     // and until this one
  float outlier = 0;               // two in every block, of both signs; 0: none
  int64_t rank_two_until = 0;      // until that step gradients have rank 2, and then any
  std::string load = {}, save = {};
  std::vector<std::string> turns = {};
};
struct Seen {
  std::vector<std::string> news;       // of rank 0
  std::vector<LayerPlan> plans;        // in force at the end, by rank
  std::vector<std::string> of_layers;  // codecs of the last step, rank 0
  std::vector<float> last;             // the last sum, rank 0
  std::vector<double> errors;          // relative, of each step, all ranks
  std::vector<std::string> turns;      // what took the plan's place in each step
  double squares = 0;                  // of what inexact codes were given in the last step, all ranks
  int64_t reduced_bytes = 0;           // of the last step, rank 0
  std::string json;
};

absl::Status Go(const Steps& run, Seen& seen) {
  const auto params = UnevenParams();
  const std::vector<const Param*> pointers = Pointers(params);
  std::mutex mutex;
  seen.plans.resize(static_cast<size_t>(run.ranks));
  return RunThreadRanks(run.ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    const auto codecs = MakeGradientCodecs(run.config, pointers, 9);
    SHOAL_ASSIGN_OR_RETURN(
        auto dp,
        DataParallel::Create(pointers, *mesh, {.zero_stage = run.zero, .bucket_bytes = 32768, .codecs = codecs}));
    ExchangeCosts costs{.ranks = run.ranks,
                        .all_reduce = {1e-6, 1e-8},
                        .reduce_scatter = {1e-6, 5e-9},
                        .all_to_all = {1e-6, 5e-9},
                        .all_gather = {1e-6, 5e-9}};
    CompressionControl control(run.config, pointers, *codecs, *dp, *mesh, run.zero, costs);
    SHOAL_RETURN_IF_ERROR(control.TakeTurns(run.turns));
    ThreadPool pool(1);
    dp->InitializeWeights(pool, 5);
    Stateful* all[] = {&control, dp.get()};
    if (!run.load.empty()) {
      CheckpointStore store({.dir = run.load}, world);
      SHOAL_RETURN_IF_ERROR(store.LoadNewest(all).status());
      SHOAL_RETURN_IF_ERROR(dp->FinishLoad());
    }
    for (int64_t step = run.from_step; step < run.from_step + run.steps; ++step) {
      if (step == run.absent) continue;
      dp->BeginStep();
      SHOAL_ASSIGN_OR_RETURN(const std::string news, control.BeginStep(step));
      if (rank == 0 && !news.empty()) seen.news.push_back(absl::StrCat(step, ": ", news));
      for (int64_t micro = 0; micro < run.micros; ++micro) {
        SHOAL_RETURN_IF_ERROR(dp->BeginMicroBatch(micro + 1 < run.micros ? DataParallel::MicroBatch::kMore
                                                                         : DataParallel::MicroBatch::kLast));
        const int64_t draw = step + 500 * micro;
        for (size_t i = params.size(); i-- > 0;) {
          const Tensor grad = dp->Grad(params[i]).grad;
          for (int64_t e = 0; e < params[i].size(); ++e) {
            const int64_t columns = params[i].size() / params[i].shape[0];
            grad.data<float>()[e] = step <= run.rank_two_until
                                        ? RankTwoGrad(rank, draw, static_cast<int>(i), e / columns, e % columns)
                                        : UnevenGrad(rank, draw, static_cast<int>(i), e);
            if (i == 4 && step > 13 && step <= run.growth_until) grad.data<float>()[e] *= run.growth;
            if (run.outlier > 0 && e % 64 < 2) grad.data<float>()[e] = e % 2 == 0 ? run.outlier : -run.outlier;
          }
          if (step == run.bad && rank == 1 && i == 2) grad.data<float>()[7] = std::numeric_limits<float>::quiet_NaN();
          dp->Ready(params[i]);
        }
      }
      SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
      const RunErrors mine = dp->codec_errors();
      SHOAL_ASSIGN_OR_RETURN(const auto sums, AllReduceValues(world, {mine.squares, mine.error_squares}, ReduceOp::kSum,
                                                              {.tag = "errors"}));
      const bool taken = step != run.skipped && (step != run.bad || run.takes_bad);
      SHOAL_RETURN_IF_ERROR(
          control.EndStep(step, {sums[0], sums[1]}, dp->factor_errors(),
                          taken ? CompressionControl::Outcome::kTaken : CompressionControl::Outcome::kSkipped));
      if (taken) dp->CommitResiduals(0);
      const std::lock_guard lock(mutex);
      if (rank != 0) continue;
      seen.turns.push_back(control.turn());
      seen.squares = sums[0];
      seen.reduced_bytes = dp->reduced_bytes();
      seen.errors.push_back(sums[0] > 0 ? std::sqrt(sums[1] / sums[0]) : 0);
      seen.last.clear();
      for (const OwnedPiece& piece : dp->pieces())
        seen.last.insert(seen.last.end(), piece.grad.data<float>(), piece.grad.data<float>() + piece.grad.size());
    }
    if (!run.save.empty()) {
      std::filesystem::create_directories(run.save);
      CheckpointStore store({.dir = run.save}, world);
      SHOAL_RETURN_IF_ERROR(store.Save(run.from_step + run.steps - 1, all, CheckpointStore::Best::kNo));
      SHOAL_RETURN_IF_ERROR(store.Wait());
    }
    const std::lock_guard lock(mutex);
    seen.plans[static_cast<size_t>(rank)] = control.plan();
    if (rank == 0) {
      seen.json = control.PlanJson();
      for (size_t l = 0; l < control.plan().option.size(); ++l)
        seen.of_layers.emplace_back(codecs->options[control.plan().option[l]]->name());
    }
    return absl::OkStatus();
  });
}

TEST(CompressionControl, PlansAfterWarmUpWithinTheBudgetForFewerBytes) {
  for (const auto mode : {CompressionConfig::LGRECO_BYTES, CompressionConfig::LGRECO_TIME}) {
    for (const int zero : {0, 1}) {
      SCOPED_TRACE(absl::StrCat(CompressionConfig::Mode_Name(mode), ", ZeRO ", zero));
      Steps run{.config = Planned(mode), .zero = zero};
      Seen seen;
      const absl::Status status = Go(run, seen);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_FALSE(seen.news.empty());
      EXPECT_THAT(seen.news[0], HasSubstr("6: compression plan 1: "));
      for (const LayerPlan& plan : seen.plans) {
        EXPECT_GE(plan.id, 1);
        EXPECT_EQ(plan.option, seen.plans[0].option) << "ranks hold different plans";
        EXPECT_LE(plan.relative_error, plan.relative_budget * (1 + 1e-9));
        EXPECT_LE(plan.bound, plan.cost);
        // Of time a little is given away for fewer errors.
        EXPECT_LE(plan.cost, (mode == CompressionConfig::LGRECO_TIME ? 1.021 : 1) * plan.uniform_cost);
        EXPECT_EQ(plan.exposed_seconds >= 0, mode == CompressionConfig::LGRECO_TIME);
      }
      if (mode == CompressionConfig::LGRECO_BYTES) {
        EXPECT_LT(seen.plans[0].bytes, seen.plans[0].uniform_bytes);
        EXPECT_GT(std::set<std::string>(seen.of_layers.begin(), seen.of_layers.end()).size(), 1U);
      }
      // Exact before; after it what a step leaves is a draw about what the tables said, and these are a mean over two
      // steps.
      for (int step = 1; step < 6; ++step) EXPECT_EQ(seen.errors[static_cast<size_t>(step - 1)], 0);
      for (size_t step = 5; step < seen.errors.size(); ++step)
        EXPECT_LE(seen.errors[step], 1.1 * seen.plans[0].relative_budget) << "step " << step + 1;
      EXPECT_THAT(seen.json, HasSubstr("\"layers\":[\"a.weight\",\"b.weight\",\"c.weight\",\"d.weight\"]"));
    }
  }
}

// With ZeRO 2 every micro-batch is encoded and sent by itself: twice the bytes, and errors of both.
TEST(CompressionControl, EveryReductionOfAStepCounts) {
  Seen one, two;
  ASSERT_TRUE(Go({.zero = 2}, one).ok());
  const absl::Status status = Go({.zero = 2, .micros = 2}, two);
  ASSERT_TRUE(status.ok()) << status;
  for (const Seen* seen : {&one, &two}) {
    const LayerPlan& plan = seen->plans[0];
    EXPECT_EQ(plan.id, 1);
    EXPECT_LT(plan.bytes, plan.uniform_bytes);
    EXPECT_LE(plan.relative_error, plan.relative_budget * (1 + 1e-9));
    for (size_t step = 5; step < seen->errors.size(); ++step) {
      EXPECT_GT(seen->errors[step], 0.5 * plan.relative_error) << "step " << step + 1;
      EXPECT_LE(seen->errors[step], 1.1 * plan.relative_budget) << "step " << step + 1;
    }
    // A rank sends its share of half an all-reduce; of each bucket a fraction of a byte is dropped.
    EXPECT_NEAR(static_cast<double>(seen->reduced_bytes), (seen == &one ? 1 : 2) * plan.bytes * 2 / 3, 5);
  }
  EXPECT_NEAR(two.squares / one.squares, 2, 0.1);
}

// The first plan's exposed time is foretold from exact steps. Once its own are measured they are what it is foretold
// from, also where nothing is worth a new plan.
TEST(CompressionControl, APlanThatStaysForetellsItsTimeAnew) {
  Steps run{.config = Planned(CompressionConfig::LGRECO_TIME), .steps = 20};
  run.config.set_error_budget(1e-9);  // that exact codes alone are within, so that every plan is the first
  Seen seen;
  const absl::Status status = Go(run, seen);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_GE(seen.news.size(), 2U);
  EXPECT_THAT(seen.news[0], HasSubstr("compression plan 1: "));
  EXPECT_THAT(seen.news.back(), HasSubstr("compression plan 1 stays: a new one would be worth less than 2 %"));
  for (const LayerPlan& plan : seen.plans) {
    EXPECT_EQ(plan.exposed_seconds, seen.plans[0].exposed_seconds) << "ranks foretell different times";
    EXPECT_THAT(seen.news.back(), HasSubstr(absl::StrFormat("%.0f ms exposed predicted", plan.exposed_seconds * 1e3)));
  }
}

// As benchmarks compare a plan with codecs for all layers: errors show that what is said to travel does.
TEST(CompressionControl, CodecsTakeTurnsWithThePlan) {
  Seen seen;
  const absl::Status status = Go({.steps = 13, .turns = {"fp32", "q2"}}, seen);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(seen.turns, testing::ElementsAre("", "", "", "", "", "", "q2", "", "", "", "q2", "", "fp32"))
      << "errors are measured in steps 8 and 9";
  for (size_t step = 6; step < seen.turns.size(); ++step) {
    const double budget = seen.plans[0].relative_budget;
    const auto [least, most] = seen.turns[step] == "fp32" ? std::pair(0.0, 0.0)
                               : seen.turns[step] == "q2" ? std::pair(2 * budget, 1.0)
                                                          : std::pair(0.2 * budget, 1.1 * budget);
    EXPECT_GE(seen.errors[step], least) << "step " << step + 1;
    EXPECT_LE(seen.errors[step], most) << "step " << step + 1;
  }
  EXPECT_EQ(Go({.turns = {"q5", "q9"}}, seen).code(), absl::StatusCode::kNotFound);
}

// Quarters of the squared budget, each from a plan of its own; then as without a ramp.
TEST(CompressionControl, TheBudgetGrowsOverTheRamp) {
  Steps run{.steps = 40};
  run.config.set_ramp_steps(20);
  Seen ramped, plain;
  ASSERT_TRUE(Go(run, ramped).ok());
  ASSERT_TRUE(Go({.steps = 40}, plain).ok());
  ASSERT_GE(ramped.news.size(), 4U);
  for (const auto& [at, step] : {std::pair{0, 6}, {1, 11}, {2, 16}, {3, 21}})
    EXPECT_THAT(ramped.news[static_cast<size_t>(at)], testing::StartsWith(absl::StrCat(step, ": compression plan ")));
  const auto mean = [](const Seen& seen, int64_t first, int64_t steps) {
    double sum = 0;
    for (int64_t s = first; s < first + steps; ++s) sum += std::pow(seen.errors[static_cast<size_t>(s - 1)], 2);
    return sum / static_cast<double>(steps);
  };
  const double all = std::pow(plain.plans[0].relative_budget, 2);
  double before = 0;
  for (const auto& [first, share] : {std::pair{6, 0.25}, {11, 0.5}, {16, 0.75}, {26, 1.0}}) {
    const double now = mean(ramped, first, 5);
    EXPECT_LE(now, 1.15 * share * all) << "steps from " << first;
    EXPECT_GT(now, before) << "steps from " << first;
    before = now;
  }
}

TEST(CompressionControl, SkippedStepsAndNaNsAreInNoTable) {
  Seen plain, skipped, bad;
  ASSERT_TRUE(Go({.steps = 8}, plain).ok());
  // Its table begins anew after a step that does not count, so the plan comes later.
  ASSERT_TRUE(Go({.steps = 10, .skipped = 3}, skipped).ok());
  ASSERT_TRUE(Go({.steps = 10, .bad = 3}, bad).ok());
  EXPECT_THAT(plain.news[0], HasSubstr("6: compression plan 1"));
  for (const Seen* seen : {&skipped, &bad}) {
    ASSERT_FALSE(seen->news.empty());
    EXPECT_THAT(seen->news[0], HasSubstr("7: compression plan 1"));
    EXPECT_TRUE(std::isfinite(seen->last[0]));
  }
}

TEST(CompressionControl, ATableWithANaNLeavesThePlanAsItIs) {
  Seen plain, bad;
  ASSERT_TRUE(Go({.steps = 12}, plain).ok());
  EXPECT_THAT(plain.news[1], HasSubstr("11: compression plan 1 stays"));  // of a table of steps 8 and 9
  ASSERT_TRUE(Go({.steps = 12, .bad = 9, .takes_bad = true}, bad).ok());
  EXPECT_EQ(bad.news.size(), 1U);
  EXPECT_EQ(bad.plans[0].option, plain.plans[0].option);
}

// Just before a step that measures errors, in which what travels as factors takes bytes, and before one that does not.
TEST(CompressionControl, AStepWithANaNIsAsIfItHadNeverBeen) {
  Steps run{.steps = 14, .rank_two_until = 14};
  for (const char* option : {"powersgd_4", "q5"}) run.config.add_options(option);
  for (const int64_t at : {7, 10}) {
    Seen absent, bad;
    run.absent = at, run.bad = -1;
    ASSERT_TRUE(Go(run, absent).ok());
    ASSERT_THAT(absent.of_layers, testing::Each("powersgd_4"));
    run.absent = -1, run.bad = at;
    ASSERT_TRUE(Go(run, bad).ok());
    for (const float x : bad.last) ASSERT_TRUE(std::isfinite(x)) << "a NaN in step " << at;
    EXPECT_EQ(bad.last, absent.last) << "a NaN in step " << at;
    EXPECT_EQ(bad.json, absent.json) << "a NaN in step " << at;
  }
}

TEST(CompressionControl, ResumedEqualsUninterrupted) {
  // In the middle of a table, with a plan pending, and with one in force.
  for (const int64_t at : {3, 5, 9}) {
    const std::string folder = absl::StrCat(testing::TempDir(), "/control_resumed_", at);
    std::filesystem::remove_all(folder);
    Seen whole, first, rest;
    ASSERT_TRUE(Go({.steps = 14}, whole).ok());
    ASSERT_TRUE(Go({.steps = at, .save = folder}, first).ok());
    const absl::Status status = Go({.from_step = at + 1, .steps = 14 - at, .load = folder}, rest);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(whole.last, rest.last) << "stopped after step " << at;
    EXPECT_EQ(whole.json, rest.json) << "stopped after step " << at;
  }
}

TEST(CompressionControl, OtherOptionsOrRanksOnResumePlanAnew) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/control_other_options");
  std::filesystem::remove_all(folder);
  Seen first, other, fewer;
  ASSERT_TRUE(Go({.steps = 9, .save = folder}, first).ok());
  Steps run{.from_step = 10, .steps = 6, .load = folder};
  run.config.add_options("bf16");
  ASSERT_TRUE(Go(run, other).ok());
  EXPECT_THAT(other.news[0], HasSubstr("10: the checkpoint's compression plan is of other options"));
  EXPECT_THAT(other.news[1], HasSubstr("13: compression plan 1: "));  // 2 steps measured, 2 to plan
  const absl::Status status = Go({.ranks = 2, .from_step = 10, .steps = 6, .load = folder}, fewer);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_GE(fewer.plans[0].id, first.plans[0].id);
}

// As many layers, but not the same ones: their plan would be the neighbours'.
TEST(CompressionControl, OtherLayersOnResumePlanAnew) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/control_other_layers");
  std::filesystem::remove_all(folder);
  Seen first, other;
  Steps run{.steps = 9, .save = folder};
  run.config.add_exempt("^a");
  ASSERT_TRUE(Go(run, first).ok());
  run = {.from_step = 10, .steps = 2, .load = folder};
  run.config.add_exempt("^d");
  ASSERT_TRUE(Go(run, other).ok());
  EXPECT_THAT(other.news[0], HasSubstr("10: the checkpoint's compression plan is of other layers"));
  EXPECT_EQ(other.plans[0].id, 0);
  EXPECT_THAT(other.of_layers, testing::Each("fp32"));
}

TEST(CompressionControl, AComingPlanOfOtherOptionsIsForgottenOnResume) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/control_other_pending");
  std::filesystem::remove_all(folder);
  Seen first, other;
  ASSERT_TRUE(Go({.steps = 5, .save = folder}, first).ok());
  EXPECT_EQ(first.plans[0].id, 0);
  Steps run{.from_step = 6, .steps = 6, .load = folder};
  run.config.add_options("bf16");
  const absl::Status status = Go(run, other);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(other.news[1], HasSubstr("9: compression plan 1: "));
}

// Outliers make q2's random rounding leave more than there is: no plan may spend that.
TEST(CompressionControl, ADefaultThatLeavesMoreThanItIsGivenIsNoBudget) {
  Seen seen;
  Steps run{.steps = 8, .outlier = 5};
  run.config.set_codec("q2_stochastic");
  ASSERT_TRUE(Go(run, seen).ok());
  EXPECT_THAT(seen.news[0], HasSubstr("q2_stochastic for all would leave more of some layers than it is given"));
  EXPECT_THAT(seen.of_layers, testing::Each("fp32"));
}

// A layer that was small when it was planned, and is not any more: what its code leaves out is far above the budget.
TEST(CompressionControl, ErrorsFarAboveTheBudgetFallBackToTheDefault) {
  Seen seen;
  Steps run{.steps = 19, .growth = 3000};
  run.config.set_replan_every_steps(1000);
  ASSERT_TRUE(Go(run, seen).ok());
  EXPECT_THAT(seen.of_layers, testing::Each("q5"));
  EXPECT_EQ(seen.plans[0].notes, "errors were far above the budget");
  EXPECT_GT(seen.errors[13], seen.plans[0].relative_budget);
  EXPECT_LT(seen.errors.back(), 0.2);
}

// A layer that grows until codes leave more than allowed, though not far more: plans may spend less, and what is
// measured anew is within the budget. Once it is small again, plans may spend all of it.
TEST(CompressionControl, ErrorsAboveTheBudgetTightenItAsLongAsTheyAre) {
  Seen seen;
  Steps run{.steps = 140, .growth = 20, .growth_until = 60};
  run.config.set_replan_every_steps(1000);
  ASSERT_TRUE(Go(run, seen).ok());
  const double allowed = seen.plans[0].coded_budget;
  const auto mean = [&](int64_t first, int64_t last) {
    double sum = 0;
    for (int64_t s = first; s <= last; ++s) sum += std::pow(seen.errors[static_cast<size_t>(s - 1)], 2);
    return std::sqrt(sum / static_cast<double>(last - first + 1));
  };
  EXPECT_GT(mean(15, 30), 1.1 * allowed);
  const double tight = mean(42, 58);
  EXPECT_LT(tight, allowed);
  EXPECT_GT(mean(130, 140), tight);
  EXPECT_LT(mean(130, 140), allowed);
  EXPECT_NEAR(seen.plans[0].relative_budget, 0.0446, 0.0005);  // as it was at first: see the news of plan 1
  EXPECT_THAT(seen.news[0], HasSubstr("of 0.0446 allowed"));
}

// What a sum of factors leaves out grows when gradients gain rank: errors are measured anew long before it is time.
TEST(CompressionControl, FactorsThatLeaveOutMoreAreLookedAtAgain) {
  Steps run{.steps = 60};
  run.config.set_replan_every_steps(1000);
  for (const char* option : {"powersgd_4", "q5"}) run.config.add_options(option);
  const auto last_plan = [](const Seen& seen) { return seen.plans[0].id; };
  Seen stay, gain;
  run.rank_two_until = 60;
  ASSERT_TRUE(Go(run, stay).ok());
  EXPECT_THAT(stay.of_layers, testing::Contains("powersgd_4"));
  run.rank_two_until = 40;
  ASSERT_TRUE(Go(run, gain).ok());
  EXPECT_GT(last_plan(gain), last_plan(stay));
  EXPECT_THAT(gain.of_layers, testing::Not(testing::Contains("powersgd_4")));
}

}  // namespace
}  // namespace shoal
