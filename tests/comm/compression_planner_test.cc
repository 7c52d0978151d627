// The compression planner against brute force, its bounds, and what callers rely on.
#include "comm/compression_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "comm/compression_instances.h"

namespace shoal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double BruteForce(const CompressionProblem& p) {
  double best = kInfinity;
  const std::function<void(size_t, double, double)> go = [&](size_t l, double cost, double error) {
    if (error > p.budget * (1 + 1e-12)) return;
    if (l == p.layers.size()) {
      best = std::min(best, cost);
      return;
    }
    for (const CompressionOption& o : p.layers[l]) go(l + 1, cost + o.cost, error + o.error_squares);
  };
  go(0, 0, 0);
  return best;
}

void ExpectSound(const CompressionProblem& p, const CompressionPlan& plan) {
  ASSERT_EQ(plan.option.size(), p.layers.size());
  double cost = 0, error = 0, fallback = 0;
  for (size_t l = 0; l < p.layers.size(); ++l) {
    cost += p.layers[l][plan.option[l]].cost;
    error += p.layers[l][plan.option[l]].error_squares;
    if (!p.fallback.empty()) fallback += p.layers[l][p.fallback[l]].cost;
  }
  EXPECT_NEAR(plan.cost, cost, 1e-9 * cost);
  EXPECT_NEAR(plan.error_squares, error, 1e-9 * error);
  EXPECT_LE(plan.error_squares, p.budget * (1 + 1e-9));
  EXPECT_LE(plan.bound, plan.cost);
  if (!p.fallback.empty()) {
    EXPECT_LE(plan.cost, fallback);
  }
}

TEST(CompressionPlanner, EqualsBruteForce) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    for (const CompressionFamily family : {CompressionFamily::kConvex, CompressionFamily::kMixed}) {
      const CompressionProblem p = RandomCompression(seed, 1 + seed % 6, 2 + seed % 4, family);
      const auto plan = PlanCompression(p);
      ASSERT_TRUE(plan.ok()) << plan.status();
      ExpectSound(p, *plan);
      const double best = BruteForce(p);
      EXPECT_NEAR(plan->cost, best, 1e-9 * best) << "seed " << seed;
      EXPECT_LE(plan->bound, best * (1 + 1e-12));
    }
  }
}

TEST(CompressionPlanner, IsCloseToTheOptimum) {
  for (const size_t layers : {size_t{30}, size_t{60}, size_t{200}}) {
    for (uint64_t seed = 0; seed < 15; ++seed) {
      for (const CompressionFamily family : {CompressionFamily::kConvex, CompressionFamily::kMixed}) {
        const CompressionProblem p = RandomCompression(100 + seed, layers, 10, family);
        const auto plan = PlanCompression(p);
        ASSERT_TRUE(plan.ok()) << plan.status();
        ExpectSound(p, *plan);
        if (layers >= 60) {
          EXPECT_LE(plan->gap(), 0.01) << layers << " layers, seed " << seed;
        }
        const double best = CompressionOptimum(p, plan->cost);
        EXPECT_LE(plan->cost, 1.005 * best) << layers << " layers, seed " << seed;
        EXPECT_LE(plan->bound, best);
        for (const auto& other : {PlanByHullGreedy(p), PlanByDynamicProgram(p)}) {
          ASSERT_TRUE(other.ok()) << other.status();
          EXPECT_LE(plan->cost, other->cost);
          EXPECT_LE(other->error_squares, p.budget * (1 + 1e-9));
        }
      }
    }
  }
}

TEST(CompressionPlanner, EqualInputsGiveEqualPlans) {
  const CompressionProblem p = RandomCompression(7, 120, 10, CompressionFamily::kMixed);
  EXPECT_EQ(PlanCompression(p)->option, PlanCompression(p)->option);
}

TEST(CompressionPlanner, BudgetOfNothingIsExact) {
  CompressionProblem p = RandomCompression(1, 10, 6, CompressionFamily::kConvex);
  p.budget = 0;
  p.fallback.clear();
  const auto plan = PlanCompression(p);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->option, testing::Each(0));
  EXPECT_EQ(plan->notes, "the error budget is 0");
}

// The default being the least lossy option must not make it infeasible (the published code then took the worst one).
TEST(CompressionPlanner, TheDefaultIsFeasibleWhenNothingIsBetter) {
  CompressionProblem p;
  for (int l = 0; l < 50; ++l) {
    p.layers.push_back({{10, 0.3}, {5, 0.7}});
    p.fallback.push_back(0);
    p.budget += 0.3;
  }
  const auto plan = PlanCompression(p);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->option, testing::Each(0));
}

TEST(CompressionPlanner, SaysWhatIsWrong) {
  CompressionProblem p = RandomCompression(1, 10, 6, CompressionFamily::kConvex);
  p.layers[3][2].error_squares = std::nan("");
  EXPECT_THAT(PlanCompression(p).status().message(), testing::HasSubstr("layer 3, option 2"));
  EXPECT_TRUE(absl::IsInvalidArgument(PlanCompression(p).status()));
  p = RandomCompression(1, 10, 6, CompressionFamily::kConvex);
  p.budget = std::nan("");
  EXPECT_TRUE(absl::IsInvalidArgument(PlanCompression(p).status()));
  p = RandomCompression(1, 10, 6, CompressionFamily::kConvex);
  for (auto& layer : p.layers) layer.erase(layer.begin());  // no exact option
  p.fallback.clear();
  p.budget = 1e-12;
  EXPECT_TRUE(absl::IsFailedPrecondition(PlanCompression(p).status()));
}

TEST(CompressionPlanner, OptionsThatDoNotApplyAreNotTaken) {
  CompressionProblem p = RandomCompression(5, 30, 6, CompressionFamily::kConvex);
  for (auto& layer : p.layers) layer[4].cost = layer[5].cost = kInfinity;
  const auto plan = PlanCompression(p);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->option, testing::Each(testing::Lt(4)));
}

// Seconds as costs, buckets that become ready evenly over backward.
OverlapProblem RandomOverlap(uint64_t seed, size_t layers, size_t options, size_t buckets, double seconds_per_byte) {
  OverlapProblem p;
  p.layers = RandomCompression(seed, layers, options, CompressionFamily::kMixed);
  for (auto& layer : p.layers.layers) {
    for (CompressionOption& o : layer) o.cost *= seconds_per_byte;
  }
  for (size_t l = 0; l < layers; ++l) p.bucket_of.push_back(static_cast<int>(l * buckets / layers));
  for (size_t b = 0; b < buckets; ++b)
    p.ready.push_back(0.15 * static_cast<double>(b + 1) / static_cast<double>(buckets));
  p.bucket_seconds.assign(buckets, 1e-4);
  p.backward_end = 0.15;
  return p;
}

double BruteForceEnd(const OverlapProblem& p) {
  double best = kInfinity;
  std::vector<int> option(p.layers.layers.size());
  const std::function<void(size_t, double)> go = [&](size_t l, double error) {
    if (error > p.layers.budget * (1 + 1e-12)) return;
    if (l == option.size()) {
      best = std::min(best, StepEnd(p, option));
      return;
    }
    for (size_t o = 0; o < p.layers.layers[l].size(); ++o) {
      option[l] = static_cast<int>(o);
      go(l + 1, error + p.layers.layers[l][o].error_squares);
    }
  };
  go(0, 0);
  return best;
}

TEST(CompressionPlannerOverlap, EndsAsBruteForceDoes) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    for (const double speed : {1e-9, 1e-8, 1e-7}) {
      OverlapProblem p = RandomOverlap(seed, 6, 4, 3, speed);
      p.slack = 0;
      const auto plan = PlanWithOverlap(p);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const double best = BruteForceEnd(p);
      EXPECT_LE(plan->cost, best * 1.002) << "seed " << seed;
      EXPECT_GE(plan->cost, best * (1 - 1e-9));
      EXPECT_LE(plan->bound, best * (1 + 1e-9));
      EXPECT_NEAR(plan->exposed_seconds, plan->cost - p.backward_end, 1e-12);
    }
  }
}

TEST(CompressionPlannerOverlap, NeverLaterThanAnyUniformChoice) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const double speed : {1e-10, 1e-9, 1e-8}) {
      const OverlapProblem p = RandomOverlap(200 + seed, 80, 10, 12, speed);
      const auto plan = PlanWithOverlap(p);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_LE(plan->error_squares, p.layers.budget * (1 + 1e-9));
      for (int o = 0; o < 10; ++o) {
        const std::vector<int> uniform(80, o);
        double error = 0;
        for (const auto& layer : p.layers.layers) error += layer[static_cast<size_t>(o)].error_squares;
        if (error > p.layers.budget) continue;
        EXPECT_LE(plan->cost, StepEnd(p, uniform) * (1 + 2.1 * p.slack));
      }
    }
  }
}

// Where communication hides behind backward anyhow, nothing is lost to errors.
TEST(CompressionPlannerOverlap, FastLinksSendWhatIsExact) {
  const OverlapProblem p = RandomOverlap(3, 60, 10, 10, 1e-13);
  const auto plan = PlanWithOverlap(p);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->error_squares, 0);
  EXPECT_LE(plan->exposed_seconds, 0.01 * plan->cost + 2e-4);
}

TEST(CompressionPlannerOverlap, StolenWorkPutsOffBackward) {
  OverlapProblem p = RandomOverlap(3, 4, 2, 2, 1e-12);
  const std::vector<int> coded(4, 1);
  const double without = StepEnd(p, coded);
  p.stolen.assign(4, {0, 0.05});
  EXPECT_NEAR(StepEnd(p, coded), without + 0.2, 1e-3);
  EXPECT_THAT(PlanWithOverlap(p)->option, testing::Each(0)) << "codes that only cost time are not taken";
}

TEST(CompressionPlannerOverlap, SaysWhatIsWrong) {
  OverlapProblem p = RandomOverlap(3, 4, 2, 2, 1e-12);
  p.ready[1] = 0;
  EXPECT_THAT(PlanWithOverlap(p).status().message(), testing::HasSubstr("bucket 1"));
  p = RandomOverlap(3, 4, 2, 2, 1e-12);
  p.bucket_of.pop_back();
  EXPECT_TRUE(absl::IsInvalidArgument(PlanWithOverlap(p).status()));
}

}  // namespace
}  // namespace shoal
