// Bounds by linear programs beside planners' plans: where they apply, and what becomes of one that a plan contradicts.
#include "launch/commands/plan_outcomes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using ::testing::HasSubstr;

constexpr int kRanks = 16;

const SequenceCostModel& ModelOfCosts() {
  static const SequenceCostModel model = *PublishedCostModel("7b", kRanks, 64 * 1024);
  return model;
}

LengthBatches TwoBatches() {
  LengthBatches read;
  for (const int32_t more : {0, 700}) {
    auto& lengths = read.batches.emplace_back();
    for (int32_t k = 1; k < 60; ++k) lengths.push_back(50 * k + more);
    lengths.push_back(20000 + more);
  }
  return read;
}

std::vector<PlanOutcome> Compare(const LengthBatches& read, PlanBounds bounds) {
  auto outcomes = ComparePlanners({.name = "", .bounds = bounds}, "file", read, kRanks, ModelOfCosts());
  EXPECT_TRUE(outcomes.ok()) << outcomes.status();
  return outcomes.ok() ? *std::move(outcomes) : std::vector<PlanOutcome>();
}

TEST(PlanOutcomes, LinearProgramsTightenEveryPlannersBound) {
  const LengthBatches read = TwoBatches();
  auto outcomes = Compare(read, PlanBounds::kLp);
  const auto bounds = AddLpBounds(read, kRanks, ModelOfCosts(), outcomes);
  ASSERT_TRUE(bounds.ok()) << bounds.status();
  EXPECT_TRUE(bounds->errors.empty()) << ErrorsText(*bounds);
  EXPECT_EQ(bounds->seconds.size(), 2u);
  for (const PlanOutcome& o : outcomes) {
    for (size_t i = 0; i < o.steps.size(); ++i) {
      EXPECT_GT(o.steps[i].bounds.lp, 0) << o.name;
      EXPECT_LE(o.steps[i].bound(), o.steps[i].seconds) << o.name;
      EXPECT_GE(o.steps[i].bound(), o.steps[i].bounds.quick()) << o.name;
    }
  }
}

TEST(PlanOutcomes, ABoundThatAPlanContradictsIsDroppedAndItsGapUnknown) {
  const LengthBatches read = TwoBatches();
  auto outcomes = Compare(read, PlanBounds::kLp);
  // As cheap as no plan can be: without the longest sequence.
  for (auto& batch : outcomes[0].steps[1].plan.micro_batches) {
    for (auto& group : batch.groups) std::erase(group.sequences, 59);
  }
  const auto bounds = AddLpBounds(read, kRanks, ModelOfCosts(), outcomes);
  ASSERT_TRUE(bounds.ok()) << bounds.status();
  EXPECT_EQ(bounds->errors.size(), 1u);
  EXPECT_THAT(ErrorsText(*bounds), HasSubstr("gap unknown of 1 of 2 batches: batch 1: "));
  for (const PlanOutcome& o : outcomes) {
    if (!o.status.ok()) continue;
    EXPECT_GT(o.steps[0].bounds.lp, 0) << o.name;
    EXPECT_EQ(o.steps[1].bounds.lp, 0) << o.name;
  }
  const auto json = OutcomesJson(outcomes, *bounds);
  EXPECT_TRUE(json["flexsp"]["gap"][0].is_number());
  EXPECT_TRUE(json["flexsp"]["gap"][1].is_null());
}

TEST(PlanOutcomes, ALongerSearchIsNoWorse) {
  const auto outcomes = Compare(TwoBatches(), PlanBounds::kSearch);
  ASSERT_GE(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].name, "flexsp");
  EXPECT_EQ(outcomes[1].name, "flexsp_x10");
  for (size_t i = 0; i < 2; ++i) EXPECT_LE(outcomes[1].steps[i].seconds, outcomes[0].steps[i].seconds);
}

}  // namespace
}  // namespace shoal
