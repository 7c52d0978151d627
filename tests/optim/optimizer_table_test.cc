// The optimizer table: every optimizer and preset against a float64 textbook loop, cut in any way, on any number of
// threads and every dispatch target.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/dispatch_targets.h"
#include "tests/optim/optimizer_fixture.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

constexpr int kSteps = 4;

bool TakesPieces(const config::OptimConfig& config) { return !config.has_muon(); }

std::vector<int64_t> Crumbs(int64_t size) { return {0, 1, 1, 17, size * 4 / 7, size}; }
std::vector<int64_t> Halves(int64_t size) { return {0, size / 2, size}; }

class OptimizerTableTest : public testing::TestWithParam<OptimizerRow> {};

TEST_P(OptimizerTableTest, EqualsTextbook) {
  const Problem problem = Problem::Standard();
  const auto expected = RunTextbook(problem, GetParam().textbook, kSteps);
  const Weights got = RunSteps(problem, GetParam().config, kSteps);
  for (size_t p = 0; p < got.size(); ++p) {
    double worst = 0;
    for (size_t i = 0; i < got[p].size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(got[p][i]) - expected[p].w[i]));
    EXPECT_LT(worst, GetParam().tolerance) << problem.params[p].name;
  }
}

TEST_P(OptimizerTableTest, HasTheSameBitsHoweverCutAndOnAnyNumberOfThreads) {
  const Problem problem = Problem::Standard();
  for (const auto moments : {config::F32, config::BF16}) {
    config::OptimConfig config = GetParam().config;
    if (config.has_adagrad_norm() && moments == config::BF16) continue;  // has no moments
    config.set_moments(moments);
    const Weights whole = RunSteps(problem, config, kSteps);
    for (const Cut& cut : RowsToTry<Cut>({Whole, Crumbs, Halves})) {
      if (!TakesPieces(config) && cut(100).size() > 2) continue;
      for (const int threads : {1, 3})
        EXPECT_TRUE(whole == RunSteps(problem, config, kSteps, threads, cut)) << threads << " threads";
    }
    OnEachDispatchTarget([&] { EXPECT_TRUE(whole == RunSteps(problem, config, kSteps)) << "differs between targets"; });
  }
}

// Moments of 8 bits more or less: near, and without bias.
TEST_P(OptimizerTableTest, Bf16MomentsStayNear) {
  const Problem problem = Problem::Standard();
  config::OptimConfig config = GetParam().config;
  const Weights exact = RunSteps(problem, config, kSteps);
  if (!config.has_adagrad_norm()) config.set_moments(config::BF16);
  const Weights rounded = RunSteps(problem, config, kSteps);
  for (size_t p = 0; p < exact.size(); ++p) {
    double moved = 0, off = 0, bias = 0;
    for (size_t i = 0; i < exact[p].size(); ++i) {
      const double from = problem.start(p, static_cast<int64_t>(i));
      const double difference = static_cast<double>(rounded[p][i]) - static_cast<double>(exact[p][i]);
      moved += std::pow(static_cast<double>(exact[p][i]) - from, 2);
      off += difference * difference;
      bias += difference;
    }
    EXPECT_LT(std::sqrt(off), 0.02 * std::sqrt(moved)) << problem.params[p].name;
    EXPECT_LT(std::abs(bias) / std::sqrt(static_cast<double>(exact[p].size())), 5 * std::sqrt(off) + 1e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerTableTest, testing::ValuesIn(OptimizerTable()),
                         [](const auto& info) { return info.param.name; });

// Time scales in samples: two steps of half the reference batch and one of all of it forget alike.
TEST(ReferenceBatch, HalfStepsDecayAsOneStep) {
  Problem problem;
  problem.Add("w", {64, 8}, ParamClass::kMatrix);
  problem.start = [](size_t p, int64_t i) { return Problem::Normal(0, p, i); };
  problem.grad = [](int, size_t, int64_t) { return 0.0; };
  config::OptimConfig config;
  config.mutable_adamw()->set_weight_decay(0.3);
  config.mutable_reference_batch()->set_tokens(1000);
  EXPECT_EQ(BatchRatio(config, 3, 500), 0.5);
  config.mutable_reference_batch()->set_sequences(6);
  EXPECT_EQ(BatchRatio(config, 3, 500), 0.5);

  const auto pointers = problem.pointers();
  const auto run = [&](const std::vector<double>& ratios) {
    auto optimizer = *MakeOptimizer(config, pointers, {});
    Tensor w = Tensor::Zeros({512}, DType::kF32), g = Tensor::Zeros({512}, DType::kF32);
    Tensor m = Tensor::Zeros({512}, DType::kF32), v = Tensor::Zeros({512}, DType::kF32);
    for (int64_t i = 0; i < 512; ++i) {
      w.data<float>()[i] = static_cast<float>(problem.start(0, i));
      v.data<float>()[i] = 1;
    }
    std::vector<OptimizerPiece> pieces = {{problem.pointers()[0], 0, 512, w, g, {m, v}}};
    ThreadPool pool(1);
    const auto owners = SoleOwner();
    double time = 0;
    int64_t step = 0;
    for (const double ratio : ratios) {
      time += ratio;
      EXPECT_TRUE(optimizer
                      ->Step({pool, *owners},
                             {.step = ++step, .learning_rate = 0.1, .batch_ratio = ratio, .time = time},
                             {absl::MakeSpan(pieces), {}})
                      .ok());
    }
    return std::pair(w.data<float>()[3], v.data<float>()[3]);
  };
  const auto one = run({1}), two = run({0.5, 0.5});
  EXPECT_NEAR(one.first, two.first, 1e-6);
  EXPECT_NEAR(one.second, 0.95, 1e-6);
  EXPECT_NEAR(two.second, 0.95, 1e-6);
}

TEST(Optimizers, EveryOptionOutOfRangeIsNamed) {
  config::OptimConfig config;
  config.mutable_adamw()->set_beta1(1);
  config.mutable_adamw()->set_weight_decay(-1);
  config.set_clip_norm(-2);
  const std::string message(CheckOptimizer(config).message());
  EXPECT_THAT(message, testing::HasSubstr("optim.adamw.beta1 is 1; it lies in [0, 1)"));
  EXPECT_THAT(message, testing::HasSubstr("optim.adamw.weight_decay is -1"));
  EXPECT_THAT(message, testing::HasSubstr("optim.clip_norm is -2"));
}

}  // namespace
}  // namespace shoal
