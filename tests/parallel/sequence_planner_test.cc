// Sequence planners against brute force, the bounds, each other, and what ranks rely on.
#include "parallel/sequence_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/rng.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRounding = 1 + 1e-9;

class Draws {
 public:
  explicit Draws(uint64_t seed) : rng_({seed, RngPurpose::kTest, 1}) {}
  double Uniform() { return rng_.Uniform53(0, at_++); }
  double Normal() { return static_cast<double>(rng_.Normal(1, at_++)); }
  int Below(int n) { return static_cast<int>(Uniform() * n); }

 private:
  Rng rng_;
  uint64_t at_ = 0;
};

// 100 tokens a rank; about as long for exchanges as for products at degree 8.
SequenceCostModel SmallModel() {
  return {.quadratic = 1e-5,
          .linear = 1e-3,
          .fixed = 0.02,
          .exchange_bytes_per_token = 1000,
          .bandwidth = {8e6, 6e6, 1e6},
          .tokens_per_rank = 100};
}

// All numbers drawn, also bandwidths that do not fall with the degree.
SequenceCostModel RandomModel(Draws& draw) {
  SequenceCostModel model = SmallModel();
  model.quadratic *= std::exp(2 * draw.Normal());
  model.linear *= std::exp(draw.Normal());
  model.fixed *= draw.Below(3);
  for (double& b : model.bandwidth) b *= std::exp(draw.Normal());
  if (draw.Below(4) == 0) model.bandwidth.clear();
  if (draw.Below(4) == 0) model.max_degree = 4;
  return model;
}

// Long-tailed lengths of up to `most` tokens.
std::vector<int32_t> RandomLengths(Draws& draw, int sequences, int64_t most) {
  std::vector<int32_t> lengths;
  for (int k = 0; k < sequences; ++k) {
    const double length = std::exp(2.5 + 1.5 * draw.Normal());
    lengths.push_back(static_cast<int32_t>(std::clamp(length, 1.0, static_cast<double>(most))));
  }
  return lengths;
}

int64_t Capacity(const SequenceCostModel& model, int ranks) {
  return model.LargestDegree(ranks) * model.tokens_per_rank;
}

std::string Case(absl::Span<const int32_t> lengths, int ranks, uint64_t seed) {
  return absl::StrCat("seed ", seed, ", ", ranks, " ranks, lengths ", absl::StrJoin(lengths, " "));
}

// The shortest step of any plan, over all subsets.
class BruteForce {
 public:
  BruteForce(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model)
      : lengths_(lengths), ranks_(ranks), model_(model), all_((1u << lengths.size()) - 1) {}

  double Optimum() const {
    std::vector<double> best(all_ + 1, kInfinity);
    best[0] = 0;
    std::vector<std::vector<double>> load(all_ + 1, std::vector<double>(static_cast<size_t>(ranks_) + 1, -1));
    for (unsigned set = 1; set <= all_; ++set) {
      for (unsigned part = set; part > 0; part = (part - 1) & set)
        best[set] = std::min(best[set], best[set & ~part] + model_.fixed + Load(part, ranks_, load));
    }
    return best[all_];
  }

 private:
  // The least load of a micro-batch of these sequences on this many ranks.
  double Load(unsigned set, int ranks, std::vector<std::vector<double>>& known) const {
    if (set == 0) return 0;
    double& load = known[set][static_cast<size_t>(ranks)];
    if (load >= 0) return load;
    double best = kInfinity;
    for (unsigned group = set; group > 0; group = (group - 1) & set) {
      if ((group & (set & -set)) == 0) continue;  // the group of the first one
      for (int degree = 1; degree <= std::min(ranks, model_.max_degree); degree *= 2) {
        int64_t tokens = 0;
        double seconds = 0;
        for (size_t k = 0; k < lengths_.size(); ++k) {
          if ((group >> k & 1) == 0) continue;
          tokens += lengths_[k];
          seconds += model_.Seconds(lengths_[k], degree);
        }
        if (tokens > degree * model_.tokens_per_rank) continue;
        best = std::min(best, std::max(seconds, Load(set & ~group, ranks - degree, known)));
      }
    }
    return load = best;
  }

  absl::Span<const int32_t> lengths_;
  int ranks_;
  const SequenceCostModel& model_;
  unsigned all_;
};

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
  EXPECT_THAT(on_7.message(), HasSubstr("degree 16 would, on at least 16 ranks"));
  EXPECT_THAT(on_7.message(), HasSubstr("225 tokens on each rank"));
  model.max_degree = 8;
  const auto heads = PlanSequences({.lengths = lengths, .ranks = 64, .model = &model}).status();
  EXPECT_THAT(heads.message(), HasSubstr("heads allow 8 at most"));
  const std::vector<int32_t> none = {5, 0};
  EXPECT_THAT(PlanSequences({.lengths = none, .ranks = 7, .model = &model}).status().message(),
              HasSubstr("sequence 1 has 0 tokens"));
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
