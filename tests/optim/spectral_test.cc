#include "optim/spectral.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

TEST(Spectral, TopSingularValueOfKnownMatrices) {
  ThreadPool pool(2);
  const Tensor diagonal = Tensor::Zeros({4, 6}, DType::kF32);
  for (int i = 0; i < 4; ++i) diagonal.data<float>()[i * 6 + i] = static_cast<float>(i == 2 ? -7 : i);
  EXPECT_NEAR(TopSingularValue(pool, diagonal, {.iterations = 200, .name = "d"}), 7, 1e-5);
  EXPECT_NEAR(RmsGain(pool, diagonal), std::sqrt((1 + 49 + 9) / 4.0), 1e-6);
  EXPECT_EQ(TopSingularValue(pool, Tensor::Zeros({3, 3}, DType::kF32), {}), 0);
  EXPECT_EQ(TopSingularValue(pool, Tensor::Zeros({0, 3}, DType::kF32), {}), 0);
  // Of rank one: |a| |b|.
  const Tensor product = Tensor::Zeros({8, 3, 5}, DType::kF32);
  double a = 0, b = 0;
  for (int i = 0; i < 8; ++i) a += (i + 1) * (i + 1);
  for (int j = 0; j < 15; ++j) b += (j - 4) * (j - 4);
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 15; ++j) product.data<float>()[i * 15 + j] = static_cast<float>((i + 1) * (j - 4));
  }
  EXPECT_NEAR(TopSingularValue(pool, product, {.iterations = 10, .name = "p"}), std::sqrt(a * b), 1e-4);
}

TEST(Spectral, RandomMatrixFollowsMarchenkoPastur) {
  ThreadPool pool(2);
  const Tensor x = Tensor::Zeros({300, 500}, DType::kF32);
  const Rng rng({1, RngPurpose::kTest, 4});
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = rng.Normal(0, static_cast<uint64_t>(i));
  const double top = TopSingularValue(pool, x, {.iterations = 500, .name = "x"});
  EXPECT_NEAR(top, std::sqrt(300) + std::sqrt(500), 1);
  EXPECT_EQ(top, TopSingularValue(pool, x, {.iterations = 500, .name = "x"}));
}

std::vector<SpectralPoint> Points(double a, double noise) {
  std::vector<SpectralPoint> points;
  for (const int64_t width : {64, 128, 256}) {
    for (const double sign : {-1.0, 1.0}) {
      SpectralPoint p{.width = width, .learning_rate = 0.64 / static_cast<double>(width), .weight_decay = 0.2};
      p.steps = static_cast<int64_t>(std::ceil(4 / (p.learning_rate * p.weight_decay)));
      p.sigma = 3 * std::sqrt(p.learning_rate / p.weight_decay) * std::pow(static_cast<double>(width), a) *
                std::exp(sign * noise);
      points.push_back(p);
    }
  }
  return points;
}

TEST(Spectral, FitRecommendsTheDecayExponent) {
  for (const auto& [a, p] : {std::pair{0.5, 0.0}, {0.75, 0.5}, {1.0, 1.0}}) {
    const SpectralFit fit = *FitWidthExponent(Points(a, 0));
    EXPECT_NEAR(fit.a, a, 1e-12);
    EXPECT_NEAR(fit.decay_exponent, p, 1e-12);
    EXPECT_NEAR(fit.spread, 0, 1e-7);
  }
  const SpectralFit fit = *FitWidthExponent(Points(0.75, 0.1));
  EXPECT_NEAR(fit.a, 0.75, 1e-12);
  // Six residuals of 0.1 over 4 degrees of freedom; ln d is spread by ln 2 to either side, twice.
  EXPECT_NEAR(fit.spread, std::sqrt(6 * 0.01 / 4 / (4 * std::log(2) * std::log(2))), 1e-12);
}

TEST(Spectral, RefusesRunsThatAreNotSteady) {
  auto points = Points(0.75, 0);
  points[3].steps = 100;
  const auto fit = FitWidthExponent(points);
  EXPECT_THAT(fit.status().message(), testing::HasSubstr("the run of width 128 is not in its steady state"));
  EXPECT_EQ(ExitCodeFor(fit.status()), ExitCode::kConfig);
  auto one_width = Points(1, 0);
  one_width.resize(2);
  EXPECT_THAT(FitWidthExponent(one_width).status().message(), testing::HasSubstr("two widths"));
  EXPECT_FALSE(FitWidthExponent({}).ok());
  points[0].sigma = 0;
  EXPECT_THAT(FitWidthExponent(points).status().message(), testing::HasSubstr("above 0"));
}

}  // namespace
}  // namespace shoal
