// The linear program of sequence plans: it has every plan at no more than its cost, and its bound is below the optimum.
#include "parallel/sequence_lp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "parallel/sequence_planner.h"
#include "tests/parallel/sequence_cases.h"

namespace shoal {
namespace {

using sequence_cases::BruteForce;
using sequence_cases::Capacity;
using sequence_cases::Case;
using sequence_cases::Draws;
using sequence_cases::kRounding;
using sequence_cases::RandomLengths;
using sequence_cases::RandomModel;
using sequence_cases::SmallModel;
using ::testing::HasSubstr;
using Sense = LinearProgram::Sense;

constexpr double kTolerance = 1e-7;  // of sums of some hundred terms, of a program whose best cost is about 1

double Cost(const LinearProgram& program, const std::vector<double>& values) {
  double cost = 0;
  for (size_t j = 0; j < values.size(); ++j) cost += program.columns[j].cost * values[j];
  return cost;
}

void ExpectPoint(const LinearProgram& program, const std::vector<double>& values, const std::string& of) {
  ASSERT_EQ(values.size(), program.columns.size());
  std::vector<double> sums(program.rows.size(), 0);
  for (size_t j = 0; j < values.size(); ++j) {
    const auto& column = program.columns[j];
    EXPECT_TRUE(column.low >= 0 && std::isfinite(column.high));
    EXPECT_GE(values[j], column.low - kTolerance) << "column " << j << ", " << of;
    EXPECT_LE(values[j], column.high * kRounding + kTolerance) << "column " << j << ", " << of;
    if (column.priority > 0) {
      EXPECT_NEAR(values[j], std::round(values[j]), kTolerance) << "column " << j << ", " << of;
    }
    for (const auto& entry : column.entries) sums[static_cast<size_t>(entry.row)] += entry.value * values[j];
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto& row = program.rows[i];
    if (row.sense != Sense::kAtMost) {
      EXPECT_GE(sums[i], row.limit - kTolerance) << "row " << i << ", " << of;
    }
    if (row.sense != Sense::kAtLeast) {
      EXPECT_LE(sums[i], row.limit + kTolerance) << "row " << i << ", " << of;
    }
  }
}

void ExpectPlanIsPoint(const SequenceLp& lp, const StepPlan& plan, absl::Span<const int32_t> lengths,
                       const SequenceCostModel& model, const std::string& of) {
  const auto values = lp.Values(plan, lengths);
  ASSERT_TRUE(values.ok()) << values.status() << ", " << of;
  ExpectPoint(lp.program(), *values, of);
  const double seconds = PlanCost(plan, lengths, model);
  EXPECT_LE(Cost(lp.program(), *values) * lp.unit(), seconds * kRounding) << of;
  EXPECT_EQ(lp.Check(plan, lengths, seconds), absl::OkStatus()) << of;
}

// Any valid plan, mostly a bad one: degrees beyond what sequences need, idle ranks, groups of one sequence.
StepPlan RandomPlan(Draws& draw, absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model) {
  std::vector<int32_t> order(lengths.size());
  for (size_t k = 0; k < order.size(); ++k) {
    order[k] = static_cast<int32_t>(k);
    std::swap(order[k], order[static_cast<size_t>(draw.Below(static_cast<int>(k) + 1))]);
  }
  StepPlan plan;
  int free = 0;
  for (size_t at = 0; at < order.size();) {
    int degree = 1;
    while (degree * model.tokens_per_rank < lengths[static_cast<size_t>(order[at])]) degree *= 2;
    while (degree < model.LargestDegree(ranks) && draw.Below(3) == 0) degree *= 2;
    if (degree > free || draw.Below(6) == 0) {
      plan.micro_batches.emplace_back();
      free = ranks;
    }
    StepPlan::Group group{.degree = degree};
    int64_t room = degree * model.tokens_per_rank;
    while (at < order.size() && lengths[static_cast<size_t>(order[at])] <= room) {
      room -= lengths[static_cast<size_t>(order[at])];
      group.sequences.push_back(order[at++]);
      if (draw.Below(3) == 0) break;
    }
    std::sort(group.sequences.begin(), group.sequences.end());
    free -= degree;
    plan.micro_batches.back().groups.push_back(std::move(group));
  }
  for (auto& batch : plan.micro_batches) {
    std::stable_sort(batch.groups.begin(), batch.groups.end(),
                     [](const auto& a, const auto& b) { return a.degree > b.degree; });
    int next = 0;
    for (auto& group : batch.groups) group.first_rank = std::exchange(next, next + group.degree);
  }
  return plan;
}

TEST(SequenceLp, BoundIsBelowTheOptimum) {
  double quick = 0, tightest = 0;
  const int instances = 250;
  for (uint64_t seed = 0; seed < instances; ++seed) {
    Draws draw(seed + 5000);
    const SequenceCostModel model = RandomModel(draw);
    const int ranks = 1 + draw.Below(seed % 4 == 0 ? 8 : 5);
    const auto lengths = RandomLengths(draw, 1 + draw.Below(7), Capacity(model, ranks));
    const double optimum = BruteForce(lengths, ranks, model).Optimum();
    const auto bound = LpBound(lengths, ranks, model, {}, seed % 3 == 0 ? 1 : 40);
    ASSERT_TRUE(bound.ok()) << bound.status() << ", " << Case(lengths, ranks, seed);
    EXPECT_LE(*bound, optimum) << Case(lengths, ranks, seed);
    EXPECT_GE(*bound, 0);
    StepBounds bounds = BoundStep(lengths, ranks, model);
    quick += 1 - bounds.quick() / optimum;
    bounds.lp = *bound;
    tightest += 1 - bounds.best() / optimum;
  }
  EXPECT_LT(tightest, 0.8 * quick);
}

TEST(SequenceLp, HasEveryPlanAtNoMoreThanItsCost) {
  for (const int ranks : {1, 2, 3, 5, 7, 8, 16, 64}) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Draws draw(seed * 100 + static_cast<uint64_t>(ranks) + 31);
      const SequenceCostModel model = RandomModel(draw);
      const auto lengths = RandomLengths(draw, 1 + draw.Below(seed % 2 == 0 ? 12 : 150), Capacity(model, ranks));
      const SequenceLp lp(lengths, ranks, model);
      for (const SequencePlanner& planner : SequencePlanners()) {
        const auto step =
            PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .tries = 60}, planner.name);
        if (step.ok())
          ExpectPlanIsPoint(lp, step->plan, lengths, model, planner.name + (", " + Case(lengths, ranks, seed)));
      }
      for (int i = 0; i < 30; ++i) {
        const StepPlan plan = RandomPlan(draw, lengths, ranks, model);
        ASSERT_EQ(ValidatePlan(plan, lengths, ranks, model), absl::OkStatus());
        ExpectPlanIsPoint(lp, plan, lengths, model, absl::StrCat("random plan ", i, ", ", Case(lengths, ranks, seed)));
      }
    }
  }
}

TEST(SequenceLp, BoundOfLargerBatchesIsBelowEveryPlan) {
  for (const int ranks : {1, 3, 8, 12, 64}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      Draws draw(seed * 100 + static_cast<uint64_t>(ranks) + 71);
      const SequenceCostModel model = RandomModel(draw);
      const auto lengths = RandomLengths(draw, 20 + draw.Below(150), Capacity(model, ranks));
      const auto bound = LpBound(lengths, ranks, model);
      ASSERT_TRUE(bound.ok()) << bound.status();
      const auto again = LpBound(lengths, ranks, model);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(*bound, *again);
      for (const SequencePlanner& planner : SequencePlanners()) {
        const auto step =
            PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .tries = 60}, planner.name);
        if (step.ok()) {
          EXPECT_LE(*bound, step->seconds) << planner.name << ", " << Case(lengths, ranks, seed);
        }
      }
    }
  }
}

TEST(SequenceLp, AnyDualsGiveABound) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Draws draw(seed + 900);
    const SequenceCostModel model = RandomModel(draw);
    const int ranks = 1 + draw.Below(16);
    const auto lengths = RandomLengths(draw, 1 + draw.Below(40), Capacity(model, ranks));
    const SequenceLp lp(lengths, ranks, model);
    const double cost = Cost(lp.program(), *lp.Values(RandomPlan(draw, lengths, ranks, model), lengths));
    for (const double scale : {1e-3, 1.0, 1e3}) {
      std::vector<double> duals(lp.program().rows.size());
      for (double& y : duals) y = draw.Below(3) == 0 ? 0 : scale * draw.Normal();
      EXPECT_LE(WeakDualityBound(lp.program(), BoundsOf(lp.program()), duals), cost) << Case(lengths, ranks, seed);
    }
  }
}

struct Corner {
  const char* name;
  std::vector<int32_t> lengths;
  int ranks;
  SequenceCostModel model;
};

std::vector<Corner> Corners() {
  const SequenceCostModel model = SmallModel();
  SequenceCostModel no_fixed = model, no_exchange = model, few_heads = model, all_quadratic = model, tiny = model;
  no_fixed.fixed = 0;
  no_exchange.bandwidth.clear();
  few_heads.max_degree = 2;
  all_quadratic.linear = 0;
  for (double* x : {&tiny.quadratic, &tiny.linear, &tiny.fixed}) *x *= 1e-12;
  const std::vector<int32_t> mixed = {1, 5, 20, 60, 60, 90, 130, 150};
  return {{"one sequence", {70}, 4, model},
          {"one token", {1}, 8, model},
          {"a sequence that fills all ranks", {400}, 4, model},
          {"equal lengths", std::vector<int32_t>(64, 12), 8, model},
          {"equal lengths that fill a rank", std::vector<int32_t>(9, 100), 4, model},
          {"one rank", {30, 40, 50, 90}, 1, model},
          {"no fixed time", mixed, 5, no_fixed},
          {"exchanges are free", mixed, 5, no_exchange},
          {"fewer heads than ranks", mixed, 7, few_heads},
          {"no linear time", mixed, 6, all_quadratic},
          {"picoseconds", mixed, 4, tiny}};
}

TEST(SequenceLp, Corners) {
  for (const Corner& corner : Corners()) {
    const auto step = PlanSequences({.lengths = corner.lengths, .ranks = corner.ranks, .model = &corner.model});
    ASSERT_TRUE(step.ok()) << corner.name << ": " << step.status();
    ExpectPlanIsPoint(SequenceLp(corner.lengths, corner.ranks, corner.model), step->plan, corner.lengths, corner.model,
                      corner.name);
    const auto bound = LpBound(corner.lengths, corner.ranks, corner.model);
    ASSERT_TRUE(bound.ok()) << corner.name << ": " << bound.status();
    EXPECT_LE(*bound, step->seconds) << corner.name;
    EXPECT_GE(*bound, step->bounds.area * (1 - 1e-6)) << corner.name;
    if (corner.lengths.size() > 8) continue;
    EXPECT_LE(*bound, BruteForce(corner.lengths, corner.ranks, corner.model).Optimum()) << corner.name;
  }
}

TEST(SequenceLp, ABoundAboveAPlanIsRefused) {
  const SequenceCostModel model = SmallModel();
  const std::vector<int32_t> lengths = {1, 5, 20, 60, 60, 90, 130, 150};
  const auto step = PlanSequences({.lengths = lengths, .ranks = 4, .model = &model});
  ASSERT_TRUE(step.ok()) << step.status();
  const SequenceLp lp(lengths, 4, model);
  EXPECT_EQ(lp.Check(step->plan, lengths, step->seconds), absl::OkStatus());
  const absl::Status above = lp.Check(step->plan, lengths, step->seconds * 1.001);
  EXPECT_EQ(above.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(above.message(), HasSubstr("is above the plan's own"));
}

// A program of a kinder model than the plan's: it does not have the plan, and what it proves is not held to be so.
TEST(SequenceLp, APlanThatIsNoPointIsRefused) {
  const SequenceCostModel model = SmallModel();
  const std::vector<int32_t> lengths = {90, 90, 90, 90}, others = {60, 90, 90, 90};
  const auto step = PlanSequences({.lengths = lengths, .ranks = 4, .model = &model});
  ASSERT_TRUE(step.ok()) << step.status();
  const absl::Status status = SequenceLp(others, 4, model).Check(step->plan, lengths, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("the plan"));
}

TEST(SequenceLp, BoundOfNothingIsNothing) {
  const auto bound = LpBound({}, 8, SmallModel());
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_EQ(*bound, 0);
}

}  // namespace
}  // namespace shoal
