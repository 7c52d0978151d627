// Sequence planners against brute force, the bounds, each other, and what ranks rely on.
#include "parallel/sequence_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "parallel/sequence_packing.h"
#include "tests/parallel/sequence_cases.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

using sequence_cases::BruteForce;
using sequence_cases::Capacity;
using sequence_cases::Case;
using sequence_cases::Draws;
using sequence_cases::kInfinity;
using sequence_cases::kRounding;
using sequence_cases::RandomLengths;
using sequence_cases::RandomModel;
using sequence_cases::SmallModel;

TEST(SequencePlanner, PlansOfRandomBatchesAreValid) {
  for (const int ranks : {1, 2, 3, 7, 8, 16, 64}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Draws draw(seed * 100 + static_cast<uint64_t>(ranks));
      const SequenceCostModel model = RandomModel(draw);
      const auto lengths = RandomLengths(draw, 1 + draw.Below(120), Capacity(model, ranks));
      for (const SequencePlanner& planner : SequencePlanners()) {
        const auto step =
            PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .tries = 60}, planner.name);
        if (!step.ok()) {  // only single degrees need one that divides the ranks
          EXPECT_FALSE(std::has_single_bit(static_cast<unsigned>(ranks))) << step.status();
          EXPECT_THAT(step.status().message(), HasSubstr("no degree that divides"));
          EXPECT_THAT(planner.name, testing::AnyOf(testing::StrEq("static"), testing::StrEq("per_batch")));
          continue;
        }
        EXPECT_EQ(ValidatePlan(step->plan, lengths, ranks, model), absl::OkStatus())
            << planner.name << ", " << Case(lengths, ranks, seed);
        EXPECT_LE(step->bound(), step->seconds);
        for (const auto& batch : step->plan.micro_batches) {
          for (const auto& group : batch.groups) EXPECT_EQ(group.first_rank % group.degree, 0);
        }
      }
    }
  }
}

TEST(SequencePlanner, BoundIsBelowTheOptimumAndThePlanAbove) {
  double excess = 0;
  const int instances = 600;
  for (uint64_t seed = 0; seed < instances; ++seed) {
    Draws draw(seed + 1000);
    const SequenceCostModel model = RandomModel(draw);
    const int ranks = seed % 2 == 0 ? 4 : 1 + draw.Below(8);
    const auto lengths = RandomLengths(draw, 1 + draw.Below(6), Capacity(model, ranks));
    const double optimum = BruteForce(lengths, ranks, model).Optimum();
    const auto step = PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .tries = 300});
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_LE(step->bounds.area, optimum * kRounding) << Case(lengths, ranks, seed);
    EXPECT_LE(step->bounds.longest, optimum * kRounding) << Case(lengths, ranks, seed);
    EXPECT_LE(step->bounds.crowding, optimum * kRounding) << Case(lengths, ranks, seed);
    EXPECT_GE(step->seconds * kRounding, optimum) << Case(lengths, ranks, seed);
    excess += step->seconds / optimum - 1;
  }
  EXPECT_LE(excess / static_cast<double>(instances), 0.02);
}

TEST(SequencePlanner, IsNeverWorseThanABaseline) {
  for (const int ranks : {1, 3, 4, 8, 64}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Draws draw(seed * 100 + static_cast<uint64_t>(ranks) + 7);
      const SequenceCostModel model = RandomModel(draw);
      const auto lengths = RandomLengths(draw, 1 + draw.Below(100), Capacity(model, ranks));
      const SequencePlanRequest request{.lengths = lengths, .ranks = ranks, .model = &model, .tries = 60};
      const auto ours = PlanSequences(request);
      ASSERT_TRUE(ours.ok()) << ours.status();
      for (const SequencePlanner& planner : SequencePlanners()) {
        const auto theirs = PlanSequences(request, planner.name);
        if (!theirs.ok()) continue;
        EXPECT_LE(ours->seconds, theirs->seconds * kRounding) << planner.name << ", " << Case(lengths, ranks, seed);
      }
    }
  }
}

TEST(SequencePlanner, EqualRequestsGiveEqualPlansAndMoreTriesNoWorseOnes) {
  Draws draw(5);
  const auto model = SmallModel();
  const auto lengths = RandomLengths(draw, 200, Capacity(model, 16));
  const std::vector<int32_t> copy = lengths;
  double before = kInfinity;
  for (const int tries : {1, 30, 300}) {
    const auto a = PlanSequences({.lengths = lengths, .ranks = 16, .model = &model, .tries = tries});
    const auto b = PlanSequences({.lengths = copy, .ranks = 16, .model = &model, .tries = tries});
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->plan, b->plan);
    EXPECT_EQ(a->plan.Hash(), b->plan.Hash());
    EXPECT_LE(a->seconds, before * kRounding);
    before = a->seconds;
  }
}

TEST(SequencePlanner, PlansAnyNumberOfRanksInFull) {
  SequenceCostModel model = SmallModel();
  model.fixed = 10;  // so that one micro-batch is best
  const std::vector<int32_t> lengths = {100, 400, 200};
  const auto step = PlanSequences({.lengths = lengths, .ranks = 7, .model = &model});
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(step->plan.Text(), "<4,2,1>");
  EXPECT_EQ(step->plan.micro_batches[0].groups[1].first_rank, 4);
  EXPECT_EQ(step->plan.micro_batches[0].groups[2].first_rank, 6);
}

// Seconds of the longest group over the groups' mean: of all micro-batches together, and of the worst.
struct Balance {
  double step = 0, worst = 0;
};
Balance BalanceOf(const StepPlan& plan, absl::Span<const int32_t> lengths, const SequenceCostModel& model) {
  double longest = 0, mean = 0;
  Balance balance;
  for (const auto& batch : plan.micro_batches) {
    std::vector<double> seconds;
    for (const auto& group : batch.groups) seconds.push_back(GroupSeconds(group, lengths, model));
    const double most = *std::max_element(seconds.begin(), seconds.end());
    const double all = std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
    balance.worst = std::max(balance.worst, most / all);
    longest += most;
    mean += all;
  }
  balance.step = longest / mean;
  return balance;
}

TEST(SequencePlanner, GroupsOfAMicroBatchTakeAboutEquallyLong) {
  const SequenceCostModel model = SmallModel();
  for (const int ranks : {8, 16, 64}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Draws draw(seed * 100 + static_cast<uint64_t>(ranks) + 3);
      const auto lengths = RandomLengths(draw, 20 * ranks, Capacity(model, ranks) / 2);
      const auto balance = [&](const char* planner) {
        const auto step = PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .tries = 60}, planner);
        EXPECT_TRUE(step.ok()) << step.status();
        return BalanceOf(step->plan, lengths, model);
      };
      const Balance ours = balance("flexsp");
      EXPECT_LE(ours.step, 1.15) << Case(lengths, ranks, seed);
      EXPECT_LE(ours.worst, 1.5) << Case(lengths, ranks, seed);
      EXPECT_GE(balance("in_order").step, 1.3)
          << "these batches are balanced by themselves: " << Case(lengths, ranks, seed);
    }
  }
}

TEST(SequencePlanner, EqualLengthsSpreadEvenly) {
  const auto model = SmallModel();
  const std::vector<int32_t> lengths(64, 12);
  const auto step = PlanSequences({.lengths = lengths, .ranks = 8, .model = &model});
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(step->plan.Text(), "<1x8>");
  EXPECT_LE(step->gap(), 1e-9);
}

TEST(SequencePlanner, AnEmptyBatchHasAnEmptyPlan) {
  const auto model = SmallModel();
  for (const SequencePlanner& planner : SequencePlanners()) {
    const auto step = PlanSequences({.ranks = 8, .model = &model}, planner.name);
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_TRUE(step->plan.micro_batches.empty());
    EXPECT_EQ(step->seconds, 0);
    EXPECT_EQ(step->bound(), 0);
    EXPECT_EQ(step->gap(), 0);
  }
}

TEST(SequencePlanner, OneSequenceOfOneToken) {
  const auto model = SmallModel();
  const std::vector<int32_t> lengths = {1};
  for (const SequencePlanner& planner : SequencePlanners())
    EXPECT_TRUE(PlanSequences({.lengths = lengths, .ranks = 8, .model = &model}, planner.name).ok()) << planner.name;
}

TEST(SequencePlanner, NamesTheSequenceThatNoDegreeHolds) {
  auto model = SmallModel();
  const std::vector<int32_t> lengths = {5, 900, 5};
  const auto on_7 = PlanSequences({.lengths = lengths, .ranks = 7, .model = &model}).status();
  EXPECT_EQ(on_7.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(on_7.message(), HasSubstr("sequence 1 has 900 tokens"));
  EXPECT_THAT(on_7.message(), HasSubstr("4, holds 400 (100 on each rank)"));
  EXPECT_THAT(on_7.message(), HasSubstr("Degree 16 would hold it, on at least 16 ranks"));
  EXPECT_THAT(on_7.message(), HasSubstr("225 tokens on each rank"));
  model.max_degree = 8;
  const auto heads = PlanSequences({.lengths = lengths, .ranks = 64, .model = &model}).status();
  EXPECT_THAT(heads.message(), HasSubstr("Degree 16 would hold it, but the limit is 8 (heads)"));
  EXPECT_THAT(heads.message(), testing::Not(HasSubstr("activations"))) << "of how many bytes is not known";
  model.bytes_per_token = 1 << 20;
  EXPECT_THAT(PlanSequences({.lengths = lengths, .ranks = 7, .model = &model}).status().message(),
              HasSubstr("Its activations need 900.0 MiB and the group has 400.0 MiB."));
  const std::vector<int32_t> none = {5, 0};
  EXPECT_THAT(PlanSequences({.lengths = none, .ranks = 7, .model = &model}).status().message(),
              HasSubstr("sequence 1 has 0 tokens"));
}

TEST(SequencePlanner, StaticTakesTheDegreeThatIsAskedFor) {
  auto model = SmallModel();
  const std::vector<int32_t> lengths = {5, 90, 150, 30};
  const auto planned = [&](int degree, int ranks) {
    return PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .degree = degree}, "static");
  };
  for (const int degree : {2, 4, 8}) {
    const auto step = planned(degree, 8);
    ASSERT_TRUE(step.ok()) << step.status();
    for (const auto& batch : step->plan.micro_batches) {
      for (const auto& group : batch.groups) EXPECT_EQ(group.degree, degree);
    }
  }
  const auto expect = [&](int degree, int ranks, const char* says) {
    const absl::Status status = planned(degree, ranks).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(says));
  };
  expect(1, 8, "degree 1 holds 100 tokens, and sequences have up to 150; degree 2 would hold them");
  expect(4, 6, "degree 4 does not divide 6 ranks");
  expect(16, 8, "degree 16 does not divide 8 ranks");
  expect(3, 6, "degree 3 is no power of two");
  expect(-1, 8, "degree -1 is no power of two");
  model.max_degree = 4;
  expect(8, 8, "degree 8 exceeds the highest degree, 4");
  model.longest = 300;
  expect(2, 8, "degree 2 holds 200 tokens, and sequences have up to 300; degree 4 would hold them");
}

TEST(SequencePlanner, RefusesBadModelsRanksAndNames) {
  auto model = SmallModel();
  const std::vector<int32_t> lengths = {5};
  EXPECT_THAT(PlanSequences({.lengths = lengths, .ranks = 0, .model = &model}).status().message(), HasSubstr("ranks"));
  EXPECT_THAT(PlanSequences({.lengths = lengths, .model = &model}, "flexps").status().message(),
              HasSubstr("did you mean 'flexsp'"));
  model.bandwidth[1] = 0;
  EXPECT_THAT(PlanSequences({.lengths = lengths, .model = &model}).status().message(),
              HasSubstr("bandwidth of degree 4 is 0"));
  model = SmallModel();
  model.linear = std::nan("");
  EXPECT_THAT(PlanSequences({.lengths = lengths, .model = &model}).status().message(), HasSubstr("linear"));
}

using Group = StepPlan::Group;

StepPlan TwoMicroBatches() {
  StepPlan plan;
  plan.micro_batches.resize(2);
  plan.micro_batches[0].groups = {Group{4, 0, {0}}, Group{2, 4, {1, 2}}, Group{1, 6, {3}}};
  plan.micro_batches[1].groups = {Group{4, 0, {4}}};
  return plan;
}

TEST(SequencePlanner, TextNamesDegreesAndMergesEqualMicroBatches) {
  EXPECT_EQ(TwoMicroBatches().Text(), "<4,2,1> <4>");
  StepPlan plan;
  plan.micro_batches.resize(3);
  plan.micro_batches[0].groups = {Group{32, 0, {0}}, Group{16, 32, {1}}, Group{16, 48, {2}}, Group{8, 64, {3}}};
  plan.micro_batches[1].groups = plan.micro_batches[2].groups = {Group{8, 0, {4}}, Group{8, 8, {5}}};
  EXPECT_EQ(plan.Text(), "<32,16x2,8> <8x2>x2");
  EXPECT_EQ(StepPlan().Text(), "");
}

TEST(SequencePlanner, HashChangesWithThePlan) {
  std::set<uint64_t> hashes = {StepPlan().Hash(), TwoMicroBatches().Hash()};
  const auto changed = [&](const auto& change) {
    StepPlan plan = TwoMicroBatches();
    change(plan.micro_batches);
    hashes.insert(plan.Hash());
  };
  changed([](auto& m) { m[0].groups[0].degree = 2; });
  changed([](auto& m) { m[0].groups[1].first_rank = 2; });
  changed([](auto& m) { m[0].groups[1].sequences = {2, 1}; });
  changed([](auto& m) { std::swap(m[0].groups[0].sequences, m[1].groups[0].sequences); });
  changed([](auto& m) { std::swap(m[0], m[1]); });
  changed([](auto& m) { m.pop_back(); });
  EXPECT_EQ(hashes.size(), 8u);
  EXPECT_EQ(TwoMicroBatches().Hash(), TwoMicroBatches().Hash());
}

TEST(SequencePlanner, ValidationNamesWhatIsWrong) {
  const auto model = SmallModel();
  const std::vector<int32_t> lengths = {400, 100, 100, 100, 10};
  ASSERT_EQ(ValidatePlan(TwoMicroBatches(), lengths, 7, model), absl::OkStatus());
  const auto expect = [&](const char* says, const auto& change) {
    StepPlan plan = TwoMicroBatches();
    change(plan.micro_batches);
    const absl::Status status = ValidatePlan(plan, lengths, 7, model);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr(says));
  };
  expect("sequence 4 is in no group", [](auto& m) { m.pop_back(); });
  expect("has sequence 1, which is in the plan already", [](auto& m) { m[1].groups[0].sequences = {1}; });
  expect("has sequence 5; the batch has 5", [](auto& m) { m[1].groups[0].sequences = {5}; });
  expect("has sequence -1", [](auto& m) { m[1].groups[0].sequences = {-1}; });
  expect("has no sequences", [](auto& m) { m[1].groups[0].sequences.clear(); });
  expect("micro-batch 1 has no groups", [](auto& m) { m[1].groups.clear(); });
  expect("no power of two", [](auto& m) { m[0].groups[1].degree = 3; });
  expect("no power of two", [](auto& m) { m[0].groups[1].degree = 0; });
  expect("is not aligned", [](auto& m) { m[0].groups[1].first_rank = 5; });
  expect("should begin at rank 4", [](auto& m) { m[0].groups[1].first_rank = 2; });
  expect("degrees descend", [](auto& m) { m[0].groups[2].degree = 4; });
  expect("ends beyond the last of 7 ranks", [](auto& m) { m[0].groups[2].degree = 2; });
  expect("has 410 tokens and holds 400", [](auto& m) {
    m[0].groups[0].sequences = {0, 4};
    m.pop_back();
  });
  EXPECT_THAT(ValidatePlan(TwoMicroBatches(), lengths, 6, model).message(), HasSubstr("ends beyond the last of 6"));
}

TEST(SequencePlanner, CostIsThatOfTheLongestGroups) {
  SequenceCostModel model{.quadratic = 1, .linear = 10, .fixed = 100, .tokens_per_rank = 1000};
  model.exchange_bytes_per_token = 6;
  model.bandwidth = {3, 2};
  EXPECT_EQ(model.Seconds(10, 1), 200);
  EXPECT_EQ(model.Seconds(10, 2), (200 + 20) / 2.0);
  EXPECT_EQ(model.Seconds(10, 16), (200 + 30) / 16.0);
  const std::vector<int32_t> lengths = {10, 10, 10, 10, 10};
  EXPECT_EQ(PlanCost(TwoMicroBatches(), lengths, model), 100 + 220 + 100 + 230 / 4.0);
}

TEST(SequencePlanner, TermsAddUpToTheCost) {
  Draws draw(11);
  for (int round = 0; round < 20; ++round) {
    const auto model = RandomModel(draw);
    const auto lengths = RandomLengths(draw, 60, Capacity(model, 16));
    for (const SequencePlanner& planner : SequencePlanners()) {
      const auto step = PlanSequences({.lengths = lengths, .ranks = 16, .model = &model, .tries = 30}, planner.name);
      ASSERT_TRUE(step.ok()) << step.status();
      const StepTerms terms = TermsOf(step->plan, lengths, 16, model);
      EXPECT_NEAR(terms.sum() / step->seconds, 1, 1e-9) << planner.name;
      EXPECT_GE(terms.idle, 0);
      EXPECT_GE(terms.exchange, 0);
    }
  }
  SequenceCostModel model{.quadratic = 1, .linear = 10, .fixed = 100, .tokens_per_rank = 1000};
  model.exchange_bytes_per_token = 6;
  model.bandwidth = {3, 2};
  const std::vector<int32_t> lengths = {10, 10, 10, 10, 10};
  const StepTerms terms = TermsOf(TwoMicroBatches(), lengths, 8, model);
  EXPECT_DOUBLE_EQ(terms.quadratic, 5 * 100 / 8.0);
  EXPECT_DOUBLE_EQ(terms.linear, 5 * 100 / 8.0);
  EXPECT_DOUBLE_EQ(terms.exchange, (30 + 20 + 20 + 0 + 30) / 8.0);
  EXPECT_EQ(terms.fixed, 200);
}

TEST(SequencePlanner, LengthsAreRoundedUpWithTheLeastExcess) {
  using sequences::RoundUp;
  EXPECT_THAT(RoundUp(std::vector<int32_t>{9, 9, 8, 3, 1, 1}, 2), testing::ElementsAre(9, 9, 9, 3, 3, 3));
  EXPECT_THAT(RoundUp(std::vector<int32_t>{9, 9, 8, 3, 1, 1}, 1), testing::Each(9));
  EXPECT_THAT(RoundUp(std::vector<int32_t>{9, 8}, 2), testing::ElementsAre(9, 8));
  EXPECT_THAT(RoundUp(std::vector<int32_t>{}, 16), testing::IsEmpty());
  // Against the recursion of Eq. 15 as it stands.
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Draws draw(seed + 50);
    auto lengths = RandomLengths(draw, 1 + draw.Below(60), 4000);
    std::sort(lengths.rbegin(), lengths.rend());
    const int limits = 1 + draw.Below(8);
    const size_t n = lengths.size();
    std::vector<int64_t> least(n + 1, 1 << 30);
    least[0] = 0;
    for (int q = 0; q < limits; ++q) {
      auto next = least;
      for (size_t k = 1; k <= n; ++k) {
        for (size_t j = 0; j < k; ++j) {
          int64_t error = least[j];
          for (size_t i = j; i < k; ++i) error += lengths[j] - lengths[i];
          next[k] = std::min(next[k], error);
        }
      }
      least = next;
    }
    const auto rounded = RoundUp(lengths, limits);
    int64_t excess = 0;
    for (size_t i = 0; i < n; ++i) {
      EXPECT_GE(rounded[i], lengths[i]);
      excess += rounded[i] - lengths[i];
    }
    EXPECT_EQ(excess, least[n]) << Case(lengths, limits, seed);
    EXPECT_LE(std::set<int32_t>(rounded.begin(), rounded.end()).size(), static_cast<size_t>(limits));
  }
}

TEST(SequencePlanner, PublishedConstants) {
  const auto model = PublishedCostModel("7b", 64, 384 * 1024);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NEAR(static_cast<double>(model->tokens_per_rank), 5950, 1);  // research/flexsp.md §2.2
  EXPECT_EQ(model->longest, 64 * model->tokens_per_rank);
  const double area = model->quadratic * 93400.0 * 93400 + model->linear * 93400;
  EXPECT_NEAR(area / 16, 3.87, 0.01);
  EXPECT_NEAR(model->Seconds(93400, 16) - area / 16, 1.131, 0.001);
  EXPECT_NEAR(model->Seconds(93400, 64) - area / 64, 0.600, 0.001);
  EXPECT_THAT(PublishedCostModel("8b", 64, 1000).status().message(), HasSubstr("7b, 13b and 30b"));
  EXPECT_THAT(PublishedCostModel("30b", 8, 1000).status().message(), HasSubstr("take at least"));
}

}  // namespace
}  // namespace shoal
