// Newton-Schulz iterations and the noise-adaptive rate.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "optim/newton_schulz.h"
#include "optim/noise_adaptive.h"
#include "optim/spectral.h"
#include "runtime/ops/ops.h"
#include "tests/optim/optimizer_fixture.h"

namespace shoal {
namespace {

using config::MuonConfig;

Tensor Random(int64_t rows, int64_t columns, uint64_t stream) {
  const Tensor x = Tensor::Zeros({rows, columns}, DType::kF32);
  const Rng rng({3, RngPurpose::kTest, stream});
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = rng.Normal(0, static_cast<uint64_t>(i));
  return x;
}
Tensor Product(ThreadPool& pool, const Tensor& a, const Tensor& b, ops::MatmulOptions options = {}) {
  OpContext ctx{.pool = &pool};
  const int64_t columns = options.transpose_b == ops::Transpose::kYes ? b.dim(0) : b.dim(1);
  const Tensor out = Tensor::Zeros({a.dim(0), columns}, DType::kF32);
  ops::Matmul(ctx, a, b, out, options);
  return out;
}

TEST(NewtonSchulz, MapsSingularValuesByItsQuintics) {
  ThreadPool pool(2);
  Orthogonalizer orthogonalize(MuonConfig::KELLER);
  // A diagonal of norm 1, so that nothing is scaled.
  std::vector<double> diagonal = {.001, .01, .1, .5};
  double rest = 1;
  for (double v : diagonal) rest -= v * v;
  diagonal.push_back(std::sqrt(rest));
  const Tensor x = Tensor::Zeros({5, 9}, DType::kF32);
  for (int i = 0; i < 5; ++i) x.data<float>()[i * 9 + i] = static_cast<float>(diagonal[i]);
  orthogonalize.Run(pool, x);
  const double expected[] = {.470544, .698917, .712120, .765439};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(static_cast<double>(x.data<float>()[i * 9 + i]), expected[i], 2e-4) << i;
  const Tensor one = Tensor::Zeros({1, 1}, DType::kF32);
  one.data<float>()[0] = 3;
  orthogonalize.Run(pool, one);
  EXPECT_NEAR(one.data<float>()[0], .696436, 1e-5);
  const Tensor none = Tensor::Zeros({4, 3}, DType::kF32);
  orthogonalize.Run(pool, none);
  for (const float v : none.span<float>()) EXPECT_EQ(v, 0);
}

TEST(NewtonSchulz, BringsSingularValuesNearOne) {
  ThreadPool pool(2);
  for (const auto& [coefficients, low, high] :
       {std::tuple{MuonConfig::KELLER, .682, 1.134}, {MuonConfig::POLAR_EXPRESS, .859, 1.141}}) {
    for (const auto& [rows, columns] : {std::pair{150, 500}, {500, 150}, {129, 400}}) {
      const Tensor x = Random(rows, columns, 1);
      Orthogonalizer orthogonalize(coefficients);
      orthogonalize.Run(pool, x);
      const double top = TopSingularValue(pool, x, {.iterations = 1000, .name = "x"});
      EXPECT_LT(top, high + 2e-3);
      // The smallest: largest of c I - X X^T.
      const Tensor wide = rows < columns ? x : Tensor::Zeros({columns, rows}, DType::kF32);
      if (rows > columns) {
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) wide.data<float>()[j * rows + i] = x.data<float>()[i * columns + j];
        }
      }
      const Tensor gram = Product(pool, wide, wide, {.transpose_b = ops::Transpose::kYes});
      const int64_t k = gram.dim(0);
      constexpr double kAbove = 1.5;
      for (int64_t i = 0; i < k * k; ++i)
        gram.data<float>()[i] = static_cast<float>(i % (k + 1) == 0 ? kAbove : 0) - gram.data<float>()[i];
      const double smallest =
          std::sqrt(std::max(0.0, kAbove - TopSingularValue(pool, gram, {.iterations = 1000, .name = "y"})));
      EXPECT_GT(smallest, low - 2e-3);
    }
  }
}

TEST(NewtonSchulz, TurnsWithItsInput) {
  ThreadPool pool(1);
  constexpr int64_t kSide = 40;
  // Gram-Schmidt in double makes a rotation.
  std::vector<std::vector<double>> q;
  for (int64_t i = 0; i < kSide; ++i) {
    std::vector<double> v(kSide);
    for (int64_t j = 0; j < kSide; ++j) v[j] = Problem::Normal(9, static_cast<size_t>(i), j);
    for (const auto& u : q) {
      double dot = 0;
      for (int64_t j = 0; j < kSide; ++j) dot += u[j] * v[j];
      for (int64_t j = 0; j < kSide; ++j) v[j] -= dot * u[j];
    }
    const double norm = NormOf(v);
    for (double& value : v) value /= norm;
    q.push_back(v);
  }
  const Tensor rotation = Tensor::Zeros({kSide, kSide}, DType::kF32);
  for (int64_t i = 0; i < kSide * kSide; ++i) rotation.data<float>()[i] = static_cast<float>(q[i / kSide][i % kSide]);
  const Tensor x = Random(kSide, 90, 2), turned = Product(pool, rotation, x);
  Orthogonalizer orthogonalize(MuonConfig::KELLER);
  orthogonalize.Run(pool, x);
  orthogonalize.Run(pool, turned);
  const Tensor expected = Product(pool, rotation, x);
  for (int64_t i = 0; i < x.size(); ++i) ASSERT_NEAR(turned.data<float>()[i], expected.data<float>()[i], 2e-4);
}

config::OptimConfig MuonWith(bool noise) {
  config::OptimConfig config;
  config.mutable_muon();
  if (noise) config.mutable_muon()->mutable_noise_adaptive();
  return config;
}

TEST(NoiseAdaptive, EqualNoiseIsMuonBitForBit) {
  // Every matrix a group of its own.
  const Problem problem = Problem::Standard();
  config::OptimConfig alone = MuonWith(true);
  alone.mutable_muon()->mutable_noise_adaptive()->add_group("up");
  alone.mutable_muon()->mutable_noise_adaptive()->add_group("down");
  EXPECT_TRUE(RunSteps(problem, alone, 4) == RunSteps(problem, MuonWith(false), 4));
  // Two equal matrices in one group.
  Problem twins;
  twins.Add("a", {20, 30}, ParamClass::kMatrix);
  twins.Add("b", {20, 30}, ParamClass::kMatrix);
  twins.start = [](size_t, int64_t i) { return Problem::Normal(0, 0, i); };
  twins.grad = [](int step, size_t, int64_t i) { return Problem::Normal(step, 0, i); };
  EXPECT_TRUE(RunSteps(twins, MuonWith(true), 4) == RunSteps(twins, MuonWith(false), 4));
  // And matrices of different noise are not.
  EXPECT_FALSE(RunSteps(problem, MuonWith(true), 4) == RunSteps(problem, MuonWith(false), 4));
}

TEST(NoiseAdaptive, OneNoisyLayerSlowsDownByTheClosedForm) {
  MuonConfig::NoiseAdaptive config;
  config.set_alpha(2);
  config.set_beta2(0.5);
  const auto adaptive = *NoiseAdaptive::Create(config, {"a", "b", "c"});
  std::vector<double> h(3);
  adaptive.Update({1, 1, 16}, absl::MakeSpan(h));  // noise x4 is squared noise x16
  EXPECT_THAT(h, testing::ElementsAre(0.5, 0.5, 8));
  const auto factors = adaptive.Factors(h);
  EXPECT_EQ(factors[0], 1);
  EXPECT_EQ(factors[1], 1);
  EXPECT_NEAR(factors[2], std::sqrt((2 / std::sqrt(4 + 8.0)) / (2 / std::sqrt(4 + 0.5))), 1e-14);
  config.clear_alpha();  // the median's
  EXPECT_NEAR((*NoiseAdaptive::Create(config, {"a", "b", "c"})).Factors(h)[2], std::pow((0.5 + 0.5) / (0.5 + 8), 0.25),
              1e-14);
  EXPECT_THAT((*NoiseAdaptive::Create(config, {"a", "b", "c"})).Factors({0, 0, 0}), testing::Each(1));
}

TEST(NoiseAdaptive, GroupsKeepToThemselves) {
  MuonConfig::NoiseAdaptive config;
  config.set_alpha(1);
  config.add_group("attention");
  config.set_every_steps(3);
  const auto adaptive = *NoiseAdaptive::Create(config, {"0.attention", "0.mlp", "1.attention"});
  const auto factors = adaptive.Factors({3, 100, 8});
  EXPECT_EQ(factors[0], 1);
  EXPECT_EQ(factors[1], 1);
  EXPECT_NEAR(factors[2], std::pow(4 / 9.0, 0.25), 1e-14);
  EXPECT_FALSE(adaptive.Measures(1));
  EXPECT_TRUE(adaptive.Measures(3));
  EXPECT_FALSE(adaptive.Measures(4));
  config.add_group("conv");
  EXPECT_THAT(NoiseAdaptive::Create(config, {"a.attention"}).status().message(),
              testing::HasSubstr("optim.muon.noise_adaptive.group 'conv' matches no matrix"));
}

TEST(Muon, FusedMatricesAreOrthogonalisedBlockByBlock) {
  Problem fused, apart;
  fused.Add("qkv", {24, 16}, ParamClass::kMatrix);
  apart.Add("q", {16, 16}, ParamClass::kMatrix);
  apart.Add("kv", {8, 16}, ParamClass::kMatrix);
  const auto at = [](int step, int64_t i) { return Problem::Normal(step, 5, i); };
  fused.start = [&](size_t, int64_t i) { return at(0, i); };
  fused.grad = [&](int step, size_t, int64_t i) { return at(step, i); };
  apart.start = [&](size_t p, int64_t i) { return at(0, i + static_cast<int64_t>(p) * 256); };
  apart.grad = [&](int step, size_t p, int64_t i) { return at(step, i + static_cast<int64_t>(p) * 256); };
  config::OptimConfig config = MuonWith(false), split = config;
  auto& rows = *split.mutable_muon()->add_split();
  rows.set_match("qkv");
  rows.add_rows(16);
  rows.add_rows(8);
  const Weights whole = RunSteps(fused, split, 2), parts = RunSteps(apart, config, 2);
  std::vector<float> joined = parts[0];
  joined.insert(joined.end(), parts[1].begin(), parts[1].end());
  EXPECT_EQ(whole[0], joined);
  rows.add_rows(8);
  EXPECT_THAT(MakeOptimizer(split, fused.pointers(), {}).status().message(),
              testing::HasSubstr("sum up to 32, but 'qkv' has 24 rows"));
}

}  // namespace
}  // namespace shoal
