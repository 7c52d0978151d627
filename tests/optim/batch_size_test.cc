#include "optim/batch_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr int kDimensions = 20;

// Samples' gradients are (1, ..., 1) plus noise whose coordinate i has deviation sqrt(i): tr(Sigma) = 0 + 1 + ... + 19.
constexpr double kTrace = kDimensions * (kDimensions - 1) / 2.0;

TEST(GradientNoise, IsUnbiasedForGroupsOfAnySizes) {
  const Rng rng({1, RngPurpose::kTest, 1});
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{4, 4}, {1, 9, 2}, {1, 1, 1, 40}}) {
    double trace = 0, true_norm = 0;
    constexpr int kTrials = 4000;
    uint64_t draw = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      int n = 0;
      for (int size : sizes) n += size;
      std::vector<double> total(kDimensions);
      NoiseTerms terms;
      for (int size : sizes) {
        std::vector<double> h(kDimensions);
        for (int s = 0; s < size; ++s) {
          ++draw;
          for (int i = 0; i < kDimensions; ++i)
            h[i] += (1 + std::sqrt(i) * static_cast<double>(rng.Normal(draw, static_cast<uint64_t>(i)))) / n;
        }
        double squares = 0;
        for (int i = 0; i < kDimensions; ++i) {
          squares += h[i] * h[i];
          total[i] += h[i];
        }
        terms.Add(squares, size);
      }
      double squares = 0;
      for (double v : total) squares += v * v;
      // Not EstimateNoise's: clipping at 0 would bias the mean.
      trace += n * (n * terms.scaled_squares - squares) / (terms.groups - 1) / kTrials;
      const GradientNoise noise = *EstimateNoise(terms, squares);
      EXPECT_GE(noise.trace, 0);
      EXPECT_EQ(noise.samples, n);
      true_norm += (squares - kTrace / n) / kTrials;
    }
    EXPECT_NEAR(trace, kTrace, 0.05 * kTrace) << "groups of unequal sizes are weighted by their samples";
    EXPECT_NEAR(true_norm, kDimensions, 0.1 * kDimensions);
  }
}

TEST(GradientNoise, ScaleIsTraceOverTheTrueGradient) {
  EXPECT_DOUBLE_EQ((GradientNoise{.trace = 100, .squared_norm = 3, .samples = 100}).NoiseScale(), 50);
  EXPECT_EQ((GradientNoise{.trace = 400, .squared_norm = 3, .samples = 100}).NoiseScale(),
            std::numeric_limits<double>::infinity());
}

TEST(GradientNoise, NeedsTwoGroups) {
  NoiseTerms terms;
  terms.Add(1, 8);
  terms.Add(5, 0);  // a rank without samples is no group
  const auto noise = EstimateNoise(terms, 1);
  EXPECT_THAT(noise.status().message(), testing::HasSubstr("this step has 1"));
  EXPECT_EQ(ExitCodeFor(noise.status()), ExitCode::kConfig);
}

config::BatchGrowthConfig Config() {
  config::BatchGrowthConfig config;
  config.set_eta(0.5);
  config.set_test_every(4);
  return config;
}

TEST(BatchGrowth, GrowsToTheNormTestsBatchAndNeverShrinks) {
  BatchGrowth growth(Config(), 32, 1000);
  EXPECT_FALSE(growth.Tests(3));
  EXPECT_TRUE(growth.Tests(4));
  // 20 / (0.25 * 1) = 80 samples.
  EXPECT_EQ(growth.Update({.trace = 20, .squared_norm = 1, .samples = 32}, 1), 80);
  EXPECT_EQ(growth.Update({.trace = 2, .squared_norm = 1, .samples = 80}, 1), 80);
  EXPECT_EQ(growth.Update({.trace = 0, .squared_norm = 0, .samples = 80}, 1), 80);
  EXPECT_EQ(growth.Update({.trace = 20.1, .squared_norm = 1, .samples = 80}, 24), 96) << "a multiple of 24";
  EXPECT_EQ(growth.Update({.trace = 1, .squared_norm = 0, .samples = 96}, 24), 984) << "within the cap";
  EXPECT_TRUE(growth.Tests(8));
  EXPECT_EQ(growth.Update({.trace = 1, .squared_norm = 0, .samples = 984}, 1), 1000);
  EXPECT_FALSE(growth.Tests(8)) << "the cap is reached";
}

TEST(BatchGrowth, CountsInTheUnitOfTheBatch) {
  // 8192 tokens were 16 documents; 40 documents are wanted.
  BatchGrowth growth(Config(), 8192, 1 << 20);
  EXPECT_EQ(growth.Update({.trace = 10, .squared_norm = 1, .samples = 16}, 1), 8192 * 40 / 16);
}

TEST(BatchGrowth, SmoothingAveragesOverTests) {
  auto config = Config();
  config.set_smoothing(0.5);
  BatchGrowth growth(config, 10, 1000);
  EXPECT_EQ(growth.Update({.trace = 4, .squared_norm = 1, .samples = 10}, 1), 16);
  EXPECT_EQ(growth.Update({.trace = 12, .squared_norm = 1, .samples = 16}, 1), 32);
}

TEST(BatchGrowth, ABatchAboveTheCapStays) {
  BatchGrowth growth(Config(), 64, 32);
  EXPECT_EQ(growth.batch(), 64);
  EXPECT_FALSE(growth.Tests(4));
}

}  // namespace
}  // namespace shoal
