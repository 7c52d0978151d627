// LAMB: published vectors, and what holds for every layerwise optimizer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/optim/optimizer_fixture.h"

namespace shoal {
namespace {

// f(x) = sum x^2 from (1, 2, 3), rate 0.003. The first row's f is the example of optax.lamb's documentation.
struct Vector {
  const char* name;
  double lambda, max_norm;
  bool bias_correction;
  int step;
  std::vector<double> x;
};
const std::vector<Vector> kVectors = {
    {"no decay, step 1", 0, 0, true, 1, {.993519260561736, 1.99351925894155, 2.99351925840149}},
    {"no decay, step 5", 0, 0, true, 5, {.967783093994953, 1.96777352235909, 2.96777041672869}},
    {"decay, step 1", .01, 0, true, 1, {.993583002827169, 1.99351946658188, 2.9934559313955}},
    {"decay, step 3", .01, 0, true, 3, {.980804182088855, 1.98061205696186, 2.98042129919275}},
    {"clipped, step 1", .01, 1, true, 1, {.993583011005226, 1.99351946433915, 2.9934559255972}},
    {"clipped, step 3", .01, 1, true, 3, {.980804148977214, 1.98061206145355, 2.98042132722156}},
    {"no bias correction", .01, 0, false, 1, {.993539685532636, 1.99351926939116, 2.99349888719076}},
};

const OptimizerRow& Row(const std::string& name) {
  static const auto* table = new std::vector<OptimizerRow>(OptimizerTable());
  return *std::find_if(table->begin(), table->end(), [&](const OptimizerRow& row) { return row.name == name; });
}

TEST(Lamb, ReproducesPublishedVectors) {
  constexpr double kLambRate = 0.003;
  for (const Vector& v : kVectors) {
    const OptimizerRow& row = Row(!v.bias_correction ? "lamb_no_bias_correction"
                                  : v.max_norm > 0   ? "lamb_apex"
                                  : v.lambda > 0     ? "lamb_tfa"
                                                     : "lamb_no_decay");
    // In float64 by the textbook.
    std::vector<TextbookTensor> tensors = {{"x", {3}, ParamClass::kMatrix, {1, 2, 3}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}}};
    // In float by the program.
    const Param param{.name = "x", .shape = {3}, .id = 0};
    const Param* const params[] = {&param};
    auto optimizer = *MakeOptimizer(row.config, params, {});
    std::vector<float> x = {1, 2, 3}, g(3), m(3), b(3);
    const auto borrow = [](std::vector<float>& values) { return Tensor::Borrow(values.data(), {3}, DType::kF32); };
    std::vector<OptimizerPiece> pieces = {{&param, 0, 3, borrow(x), borrow(g), {borrow(m), borrow(b)}}};
    ThreadPool pool(1);
    const auto owners = SoleOwner();
    for (int t = 1; t <= v.step; ++t) {
      double squares = 0;
      for (int i = 0; i < 3; ++i) {
        tensors[0].g[i] = 2 * tensors[0].w[i];
        g[i] = 2 * x[i];
        squares += tensors[0].g[i] * tensors[0].g[i];
      }
      row.textbook({.t = t, .rate = kLambRate}, tensors);
      ASSERT_TRUE(optimizer
                      ->Step({pool, *owners},
                             {.step = t,
                              .learning_rate = kLambRate,
                              .grad_norm = std::sqrt(squares),
                              .time = static_cast<double>(t)},
                             {absl::MakeSpan(pieces), {}})
                      .ok());
      if (t == 1 && v.lambda == 0) {
        double f = 0;
        for (double value : tensors[0].w) f += value * value;
        EXPECT_NEAR(f, 13.9223571072986, 1e-12);
      }
    }
    for (int i = 0; i < 3; ++i) {
      EXPECT_NEAR(tensors[0].w[i], v.x[i], 1e-12) << v.name;
      EXPECT_NEAR(static_cast<double>(x[i]), v.x[i], 5e-7) << v.name;
    }
  }
}

double Moved(const Problem& problem, const Weights& weights, size_t p) {
  double sum = 0;
  for (size_t i = 0; i < weights[p].size(); ++i)
    sum += std::pow(static_cast<double>(weights[p][i]) - problem.start(p, static_cast<int64_t>(i)), 2);
  return std::sqrt(sum);
}
double StartNorm(const Problem& problem, size_t p) {
  double sum = 0;
  for (int64_t i = 0; i < problem.params[p].size(); ++i) sum += std::pow(problem.start(p, i), 2);
  return std::sqrt(sum);
}

TEST(Lamb, AdaptedTensorsMoveByTheRateTimesTheirNorm) {
  const Problem problem = Problem::Standard();
  for (const char* name : {"lamb_tfa", "lamb_apex", "lamb_nvlamb", "lamb_optax"}) {
    const Weights after = RunSteps(problem, Row(name).config, 1);
    const bool vectors = std::string(name) == "lamb_nvlamb" || std::string(name) == "lamb_optax";
    for (size_t p = 0; p < problem.params.size(); ++p) {
      const double expected = kRate * StartNorm(problem, p);
      if (problem.params[p].param_class == ParamClass::kVector && !vectors) {
        EXPECT_GT(std::abs(Moved(problem, after, p) - expected), 1e-4 * expected) << name;
      } else {
        EXPECT_NEAR(Moved(problem, after, p), expected, 2e-5 * expected) << name << " " << problem.params[p].name;
      }
    }
  }
}

TEST(Lamb, ClippedRatioIsAtMostOne) {
  Problem problem = Problem::Standard();
  problem.start = [](size_t p, int64_t i) { return 5 * Problem::Normal(0, p, i); };
  const Weights after = RunSteps(problem, Row("lamb_lambc").config, 1);
  // Bias corrected, the first direction is sign(g) + 0.01 w, of norm sqrt(n) about: less than ||w|| here.
  for (size_t p = 0; p < problem.params.size(); ++p) {
    const double n = std::sqrt(static_cast<double>(problem.params[p].size()));
    EXPECT_NEAR(Moved(problem, after, p), kRate * n, 0.02 * kRate * n) << problem.params[p].name;
  }
}

// Without decay and epsilon the size of gradients cancels, and so does bias correction.
TEST(Lamb, IsInvariantToTheScaleOfGradients) {
  const Problem problem = Problem::Standard();
  Problem larger = problem;
  larger.grad = [&](int step, size_t p, int64_t i) { return 64 * problem.grad(step, p, i); };
  config::OptimConfig config = Row("lamb_no_decay").config;
  config.mutable_lamb()->set_epsilon(0);
  auto uncorrected = config;
  uncorrected.mutable_lamb()->set_bias_correction(false);
  const Weights a = RunSteps(problem, config, 3), b = RunSteps(larger, config, 3),
                c = RunSteps(problem, uncorrected, 3);
  for (size_t p = 0; p < a.size(); ++p) {
    if (problem.params[p].param_class == ParamClass::kVector) continue;  // do not adapt
    for (size_t i = 0; i < a[p].size(); ++i) {
      ASSERT_NEAR(a[p][i], b[p][i], 1e-6);
      ASSERT_NEAR(a[p][i], c[p][i], 1e-6);
    }
  }
}

TEST(Lamb, WithoutMomentumItIsSignDescent) {
  const Problem problem = Problem::Standard();
  config::OptimConfig config = Row("lamb_no_decay").config;
  config.mutable_lamb()->set_epsilon(0);
  config.mutable_lamb()->set_beta1(0);
  config.mutable_lamb()->set_beta2(0);
  const Weights after = RunSteps(problem, config, 1);
  const double step = kRate * StartNorm(problem, 0) / std::sqrt(static_cast<double>(problem.params[0].size()));
  for (int64_t i = 0; i < problem.params[0].size(); ++i) {
    const double sign = problem.grad(1, 0, i) > 0 ? 1 : -1;
    ASSERT_NEAR(static_cast<double>(after[0][i]), problem.start(0, i) - step * sign, 1e-6);
  }
}

TEST(Layerwise, TensorsWithoutWeightsOrDirectionHaveRatioOne) {
  Problem problem = Problem::Standard();
  const Problem standard = problem;
  problem.start = [&](size_t p, int64_t i) { return p == 0 ? 0.0 : standard.start(p, i); };
  problem.grad = [&](int step, size_t p, int64_t i) { return p == 1 ? 0.0 : standard.grad(step, p, i); };
  for (const char* name : {"lamb_no_decay", "lars_original", "lars_optax"}) {
    config::OptimConfig config = Row(name).config;
    if (config.has_lars()) config.mutable_lars()->set_weight_decay(0);
    const Weights after = RunSteps(problem, config, 1);
    for (int64_t i = 0; i < problem.params[0].size(); ++i) {
      const double g = kGradScale * problem.grad(1, 0, i);
      const double direction = config.has_lars() ? g : g / (std::abs(g) + 1e-6);
      ASSERT_NEAR(static_cast<double>(after[0][i]), -kRate * direction, 1e-6) << name;
    }
    EXPECT_EQ(Moved(problem, after, 1) < 1e-4, true) << name << ": no gradient, no step";
  }
}

TEST(Layerwise, GroupsSayWhatAdapts) {
  const Problem problem = Problem::Standard();
  config::OptimConfig config = Row("lamb_tfa").config;
  auto& group = *config.add_group();
  group.set_match("norm");
  group.set_adapt(true);
  const Weights after = RunSteps(problem, config, 1);
  const double expected = kRate * StartNorm(problem, 3);
  EXPECT_NEAR(Moved(problem, after, 3), expected, 2e-5 * expected);
}

}  // namespace
}  // namespace shoal
