// Linear programs: what duals prove, and branching, against optima known beforehand.
#include "parallel/linear_program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/parallel/sequence_cases.h"

namespace shoal {
namespace {

using sequence_cases::Draws;
using Sense = LinearProgram::Sense;

// min x + 2 y with x + y >= 3 and x <= 2: 4, proven by duals 2 and -1.
LinearProgram TwoColumns() {
  LinearProgram program;
  const int x = program.AddColumn(1, 10), y = program.AddColumn(2, 10);
  const int sum = program.AddRow(Sense::kAtLeast, 3), most = program.AddRow(Sense::kAtMost, 2);
  program.Add(sum, x, 1);
  program.Add(sum, y, 1);
  program.Add(most, x, 1);
  return program;
}

// A knapsack to be filled: weights and costs of items, each 0 or 1 times, to at least 0.6 of the weight of all.
LinearProgram Knapsack(Draws& draw, int items) {
  std::vector<double> costs, weights;
  for (int j = 0; j < items; ++j) {
    costs.push_back(0.2 + draw.Uniform());
    weights.push_back(0.2 + draw.Uniform());
  }
  LinearProgram program;
  const int row = program.AddRow(Sense::kAtLeast, 0.6 * std::accumulate(weights.begin(), weights.end(), 0.0));
  for (size_t j = 0; j < weights.size(); ++j) program.Add(row, program.AddColumn(costs[j], 1, 1), weights[j]);
  return program;
}

double LeastByTrying(const LinearProgram& program) {
  double least = std::numeric_limits<double>::infinity();
  for (unsigned set = 0; set < 1u << program.columns.size(); ++set) {
    double cost = 0, weight = 0;
    for (size_t j = 0; j < program.columns.size(); ++j) {
      if ((set >> j & 1) == 0) continue;
      cost += program.columns[j].cost;
      weight += program.columns[j].entries[0].value;
    }
    if (weight >= program.rows[0].limit) least = std::min(least, cost);
  }
  return least;
}

TEST(LinearProgram, DualsProveABound) {
  const LinearProgram program = TwoColumns();
  const ColumnBounds bounds = BoundsOf(program);
  EXPECT_NEAR(WeakDualityBound(program, bounds, {2, -1}), 4, 1e-9);
  EXPECT_LE(WeakDualityBound(program, bounds, {2, -1}), 4);
  EXPECT_NEAR(WeakDualityBound(program, bounds, {1, 0}), 3, 1e-9);
  EXPECT_NEAR(WeakDualityBound(program, bounds, {}), 0, 1e-9);
}

TEST(LinearProgram, DualsThatProveNothingDoNotCount) {
  const LinearProgram program = TwoColumns();
  const ColumnBounds bounds = BoundsOf(program);
  const double nan = std::nan("");
  EXPECT_EQ(WeakDualityBound(program, bounds, {-5, 7}), WeakDualityBound(program, bounds, {0, 0}));
  EXPECT_EQ(WeakDualityBound(program, bounds, {nan, -HUGE_VAL}), WeakDualityBound(program, bounds, {0, 0}));
  Draws draw(1);
  for (int i = 0; i < 1000; ++i) {
    const std::vector<double> duals = {20 * draw.Uniform() - 10, 20 * draw.Uniform() - 10};
    EXPECT_LE(WeakDualityBound(program, bounds, duals), 4);
  }
}

TEST(LinearProgram, NarrowerBoundsOfColumnsProveMore) {
  const LinearProgram program = TwoColumns();
  ColumnBounds bounds = BoundsOf(program);
  bounds.high[0] = 1;
  EXPECT_NEAR(WeakDualityBound(program, bounds, {2, 0}), 5, 1e-9);
  bounds.high[1] = 1;  // 1 + 1 is below 3
  EXPECT_TRUE(ProvesInfeasible(program, bounds, {1, 0}));
  EXPECT_FALSE(ProvesInfeasible(program, bounds, {-1, 0}));
  EXPECT_FALSE(ProvesInfeasible(program, BoundsOf(program), {1, 0}));
}

TEST(LinearProgram, BranchingReachesTheLeastOfWholeNumbers) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Draws draw(seed);
    const LinearProgram program = Knapsack(draw, 3 + draw.Below(8));
    const double least = LeastByTrying(program);
    double before = 0;
    for (const int solves : {1, 3, 9, 1000}) {
      const auto solver = MakeLinearSolver(program);
      ASSERT_TRUE(solver.ok()) << solver.status();
      const auto bound = BoundIntegerProgram(program, **solver, solves);
      ASSERT_TRUE(bound.ok()) << bound.status();
      EXPECT_LE(bound->bound, least) << "seed " << seed;
      EXPECT_GE(bound->bound, before - 1e-9) << "seed " << seed;
      EXPECT_LE(bound->solves, solves);
      before = bound->bound;
    }
    EXPECT_NEAR(before, least, 1e-6) << "seed " << seed;
  }
}

// One of its halves is infeasible, which has to be proven for the other to count alone.
TEST(LinearProgram, ABranchThatCannotBeIsProvenSo) {
  LinearProgram program;
  const int x = program.AddColumn(1, 1, 1), y = program.AddColumn(10, 1);
  const int row = program.AddRow(Sense::kAtLeast, 0.5);
  program.Add(row, x, 1);
  program.Add(row, y, 0.1);
  const auto solver = MakeLinearSolver(program);
  ASSERT_TRUE(solver.ok()) << solver.status();
  const auto bound = BoundIntegerProgram(program, **solver, 9);
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_NEAR(bound->bound, 1, 1e-9);
  EXPECT_EQ(bound->open, 0);
}

TEST(LinearProgram, AProgramThatNothingMeetsIsAnError) {
  LinearProgram program;
  program.Add(program.AddRow(Sense::kAtLeast, 2), program.AddColumn(1, 1), 1);
  const auto solver = MakeLinearSolver(program);
  ASSERT_TRUE(solver.ok()) << solver.status();
  EXPECT_EQ(BoundIntegerProgram(program, **solver, 5).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace shoal
