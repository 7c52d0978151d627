// The cost model of sequences, fitted to times: how soon, against noise, hiccups and what is never seen.
#include "parallel/sequence_cost_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/rng.h"

namespace shoal {
namespace {

using Coefficients = SequenceCostFit::Coefficients;
using GroupTime = SequenceCostFit::GroupTime;
using StepTime = SequenceCostFit::StepTime;
using testing::HasSubstr;

constexpr int kRanks = 8;

class FitDraws {
 public:
  explicit FitDraws(uint64_t seed) : rng_({seed, RngPurpose::kTest, 2}) {}
  double Uniform() { return rng_.Uniform53(0, at_++); }
  double Normal() { return static_cast<double>(rng_.Normal(1, at_++)); }

 private:
  Rng rng_;
  uint64_t at_ = 0;
};

SequenceCostModel StartModel() {
  return {.quadratic = 2e-8,
          .linear = 4e-5,
          .fixed = 0.02,
          .exchange_bytes_per_token = 1e5,
          .bandwidth = {2e10, 1e10, 4e9},
          .tokens_per_rank = 4096};
}

// Each coefficient 0.3 to 3 times the start's.
SequenceCostModel TrueModel(FitDraws& draw) {
  SequenceCostModel model = StartModel();
  const auto off = [&] { return 0.3 * std::pow(10.0, draw.Uniform()); };
  model.quadratic *= off();
  model.linear *= off();
  model.fixed *= off();
  for (double& b : model.bandwidth) b /= off();
  return model;
}

struct Step {
  std::vector<GroupTime> groups;
  StepTime time;
};

// Steps as planned with `planning`, that take what `truth` says, each group off by `noise`, and `outside` more.
class TimedSteps {
 public:
  TimedSteps(SequenceCostModel truth, uint64_t seed) : truth_(std::move(truth)), draw_(seed) {}

  Step Next(const SequenceCostFit& fit, double noise, double outside) {
    std::vector<int32_t> lengths;
    for (int k = 0; k < 24; ++k)
      lengths.push_back(static_cast<int32_t>(std::clamp(std::exp(7 + 1.2 * draw_.Normal()), 16.0, 30000.0)));
    const char* planners[] = {"tier0", "greedy", "per_batch"};
    const auto plan = PlanSequences({.lengths = lengths, .ranks = kRanks, .model = &fit.model()}, planners[at_++ % 3]);
    EXPECT_TRUE(plan.ok()) << plan.status();
    Step step;
    step.time.predicted = PlanCost(plan->plan, lengths, fit.model()) + fit.outside();
    for (const auto& batch : plan->plan.micro_batches) {
      double longest = 0;
      for (const auto& group : batch.groups) {
        GroupTime time{.degree = group.degree};
        for (const int32_t k : group.sequences) {
          const double s = lengths[static_cast<size_t>(k)];
          time.squares += s * s;
          time.tokens += s;
        }
        time.seconds = (truth_.fixed + GroupSeconds(group, lengths, truth_)) * (1 + noise * draw_.Normal());
        longest = std::max(longest, time.seconds);
        step.groups.push_back(time);
      }
      step.time.micro_batches += longest;
    }
    step.time.seconds = step.time.micro_batches + outside;
    return step;
  }

 private:
  SequenceCostModel truth_;
  FitDraws draw_;
  int at_ = 0;
};

void Slow(Step& step, double times) {
  for (GroupTime& group : step.groups) group.seconds *= times;
  step.time.micro_batches *= times;
  step.time.seconds *= times;
}

std::vector<double> ErrorsOf(SequenceCostFit& fit, TimedSteps& steps, int count, double noise) {
  std::vector<double> errors;
  for (int i = 0; i < count; ++i) {
    const Step step = steps.Next(fit, noise, 0.05);
    errors.push_back(std::abs(step.time.predicted - step.time.seconds) / step.time.seconds);
    fit.AddStep(step.groups, step.time);
  }
  std::sort(errors.begin(), errors.end());
  return errors;
}

TEST(SequenceCostFit, PredictsStepsWithinTenPercentAfterTwenty) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    FitDraws draw(seed);
    SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
    TimedSteps steps(TrueModel(draw), seed);
    ErrorsOf(fit, steps, 20, 0.05);
    EXPECT_LE(fit.errors().median, 0.10) << "of the first steps, seed " << seed;
    EXPECT_LE(fit.errors().p95, 0.25) << "of the first steps, seed " << seed;
    const auto errors = ErrorsOf(fit, steps, 40, 0.05);
    EXPECT_LE(errors[19], 0.10) << "median, seed " << seed;
    EXPECT_LE(errors[37], 0.25) << "95th percentile, seed " << seed;
    EXPECT_EQ(fit.errors().steps, 40);
    EXPECT_NEAR(fit.errors().median, errors[19], 1e-12);
    EXPECT_NEAR(fit.errors().p95, errors[37], 1e-12);
    EXPECT_NEAR(fit.outside(), 0.05, 1e-6);
  }
}

TEST(SequenceCostFit, FindsTheTruthWithoutNoise) {
  FitDraws draw(3);
  const SequenceCostModel truth = TrueModel(draw);
  SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
  TimedSteps steps(truth, 3);
  ErrorsOf(fit, steps, 40, 0);
  EXPECT_LE(ModelChange(truth, fit.model(), kRanks), 0.03);
  EXPECT_EQ(fit.model().tokens_per_rank, StartModel().tokens_per_rank);
}

TEST(SequenceCostFit, AHiccupDoesNotRuinIt) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    FitDraws draw(seed + 50);
    SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
    TimedSteps steps(TrueModel(draw), seed);
    ErrorsOf(fit, steps, 10, 0.05);
    const SequenceCostModel before = fit.model();
    const double outside = fit.outside();
    Step slow = steps.Next(fit, 0.05, 0.05);
    Slow(slow, 5);
    fit.AddStep(slow.groups, slow.time);
    EXPECT_LE(ModelChange(before, fit.model(), kRanks), 0.10) << "seed " << seed;
    EXPECT_NEAR(fit.outside(), outside, 1e-6);
    const auto errors = ErrorsOf(fit, steps, 10, 0.05);
    EXPECT_LE(errors[4], 0.10) << "seed " << seed;
  }
}

TEST(SequenceCostFit, FollowsAChangeThatStays) {
  FitDraws draw(7);
  const SequenceCostModel truth = TrueModel(draw);
  SequenceCostModel slower = truth;
  slower.quadratic *= 2;
  slower.linear *= 2;
  slower.fixed *= 2;
  SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
  TimedSteps before(truth, 7), after(slower, 8);
  ErrorsOf(fit, before, 30, 0.05);
  ErrorsOf(fit, after, 40, 0.05);
  EXPECT_LE(ErrorsOf(fit, after, 20, 0.05)[9], 0.10);
}

TEST(SequenceCostFit, WhatWasNeverSeenScalesWithItsNeighbours) {
  SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
  // All is three times as slow, and no group is of a degree above 2.
  for (int step = 0; step < 20; ++step) {
    std::vector<GroupTime> groups;
    for (const int degree : {1, 2}) {
      for (const double s : {200.0, 900.0, 3000.0 + 20 * step}) {
        const double start = StartModel().fixed + StartModel().Seconds(static_cast<int64_t>(s), degree);
        groups.push_back({.degree = degree, .squares = s * s, .tokens = s, .seconds = 3 * start});
      }
    }
    fit.AddStep(groups, {.micro_batches = 1, .seconds = 1});
  }
  for (size_t k = 0; k < 3; ++k)
    EXPECT_NEAR(StartModel().bandwidth[k] / fit.model().bandwidth[k], 3, 0.15) << "degree " << (2 << k);
}

TEST(SequenceCostFit, FindsCostsThatTheStartDoesNotKnow) {
  FitDraws draw(4);
  const SequenceCostModel truth = StartModel();
  SequenceCostModel start = truth;
  start.fixed = 0;
  start.bandwidth = {};
  start.exchange_bytes_per_token = 0;
  SequenceCostFit fit(start, kRanks, Coefficients::kFitted);
  EXPECT_EQ(fit.model().bandwidth.size(), 0u);
  TimedSteps steps(truth, 4);
  ErrorsOf(fit, steps, 30, 0.02);
  EXPECT_EQ(fit.model().Check(), absl::OkStatus());
  EXPECT_LE(ErrorsOf(fit, steps, 20, 0.02)[9], 0.10);
}

TEST(SequenceCostFit, AnythingGoesInAndAGoodModelComesOut) {
  const double infinity = std::numeric_limits<double>::infinity();
  SequenceCostFit fit(StartModel(), 1, Coefficients::kFitted);
  fit.AddStep({}, {});
  fit.AddStep({{GroupTime{.squares = 1, .tokens = 1, .seconds = 0}, GroupTime{.seconds = std::nan("")},
                GroupTime{.seconds = infinity}, GroupTime{.seconds = -1}}},
              {.micro_batches = std::nan(""), .seconds = std::nan("")});
  EXPECT_EQ(ModelChange(StartModel(), fit.model(), 1), 0);
  EXPECT_EQ(fit.errors().steps, 0);
  EXPECT_EQ(fit.outside(), 0);
  for (int i = 0; i < 50; ++i)  // times that have nothing to do with tokens
    fit.AddStep({{GroupTime{.squares = 1e6, .tokens = 1e3, .seconds = 1e-9},
                  GroupTime{.squares = 1, .tokens = 1, .seconds = 10}}},
                {.micro_batches = 10, .seconds = 10});
  EXPECT_EQ(fit.model().Check(), absl::OkStatus());
}

TEST(SequenceCostFit, AFixedModelStays) {
  FitDraws draw(5);
  SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFixed);
  TimedSteps steps(TrueModel(draw), 5);
  ErrorsOf(fit, steps, 5, 0.05);
  EXPECT_EQ(ModelChange(StartModel(), fit.model(), kRanks), 0);
  EXPECT_EQ(fit.errors().steps, 5);
  EXPECT_GT(fit.outside(), 0);
}

TEST(SequenceCostFit, GoesOnFromItsSavedState) {
  FitDraws draw(6);
  const SequenceCostModel truth = TrueModel(draw);
  SequenceCostFit fit(StartModel(), kRanks, Coefficients::kFitted);
  TimedSteps steps(truth, 6);
  ErrorsOf(fit, steps, 12, 0.05);
  SequenceCostFit resumed(StartModel(), kRanks, Coefficients::kFitted);
  ASSERT_EQ(resumed.Load(fit.Save()), absl::OkStatus());
  for (int i = 0; i < 5; ++i) {
    const Step step = steps.Next(fit, 0.05, 0.05);
    fit.AddStep(step.groups, step.time);
    resumed.AddStep(step.groups, step.time);
    ASSERT_EQ(fit.Save(), resumed.Save()) << "step " << i;
  }
  SequenceCostFit on_two(StartModel(), 2, Coefficients::kFitted);
  ASSERT_EQ(on_two.Load(fit.Save()), absl::OkStatus());
  EXPECT_LE(ModelChange(fit.model(), on_two.model(), 2), 1e-12);
  const std::string saved = fit.Save();
  for (const char* bad : {"", "[]", "{}", R"({"start": 1})"})
    EXPECT_EQ(fit.Load(bad).code(), absl::StatusCode::kDataLoss) << bad;
  EXPECT_EQ(fit.Save(), saved);
}

}  // namespace
}  // namespace shoal
