// The optimizer table: every optimizer against a float64 textbook loop, cut in any way, on any number of threads and
// every dispatch target.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "optim/guard.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "tests/dispatch_targets.h"

namespace shoal {
namespace {

constexpr int64_t kSize = 70001;
constexpr int kSteps = 5;
constexpr double kRate = 1e-2, kScale = 0.5;

float Grad(int step, int64_t i) {
  return Rng({1, RngPurpose::kTest, 1}).Normal(static_cast<uint64_t>(step), static_cast<uint64_t>(i));
}
float Start(int64_t i) { return Rng({1, RngPurpose::kTest, 2}).Normal(0, static_cast<uint64_t>(i)); }

struct OptimizerRow {
  std::string name;
  config::OptimConfig config;
  std::function<void(int step, double g, double& w, std::vector<double>& state, bool vector)> textbook;
};

std::vector<OptimizerRow> Table() {
  std::vector<OptimizerRow> rows;
  config::OptimConfig adamw;
  adamw.mutable_adamw()->set_weight_decay(0.1);
  rows.push_back({"adamw", adamw, [](int t, double g, double& w, std::vector<double>& s, bool vector) {
                    s[0] = 0.9 * s[0] + 0.1 * g;
                    s[1] = 0.95 * s[1] + 0.05 * g * g;
                    if (!vector) w *= 1 - kRate * 0.1;
                    w -= kRate * (s[0] / (1 - std::pow(0.9, t))) / (std::sqrt(s[1] / (1 - std::pow(0.95, t))) + 1e-8);
                  }});
  for (const bool nesterov : {false, true}) {
    config::OptimConfig sgd;
    sgd.mutable_sgd()->set_momentum(0.8);
    sgd.mutable_sgd()->set_weight_decay(0.01);
    sgd.mutable_sgd()->set_nesterov(nesterov);
    rows.push_back({nesterov ? "sgd_nesterov" : "sgd", sgd,
                    [nesterov](int, double g, double& w, std::vector<double>& s, bool vector) {
                      if (!vector) g += 0.01 * w;
                      s[0] = 0.8 * s[0] + g;
                      w -= kRate * (nesterov ? g + 0.8 * s[0] : s[0]);
                    }});
  }
  return rows;
}

std::vector<float> RunSteps(const config::OptimConfig& config, ParamClass param_class,
                            const std::vector<int64_t>& borders, int threads) {
  auto optimizer = *MakeOptimizer(config);
  const Param param{.name = "p", .shape = {kSize}, .param_class = param_class};
  ThreadPool pool(threads);
  std::vector<float> weights(kSize), grads(kSize);
  for (int64_t i = 0; i < kSize; ++i) weights[i] = Start(i);
  std::vector<OptimizerPiece> pieces;
  for (size_t b = 0; b + 1 < borders.size(); ++b) {
    const int64_t n = borders[b + 1] - borders[b];
    auto& piece = pieces.emplace_back();
    piece.param = &param;
    piece.begin = borders[b], piece.end = borders[b + 1];
    piece.master = Tensor::Borrow(weights.data() + borders[b], {n}, DType::kF32);
    piece.grad = Tensor::Borrow(grads.data() + borders[b], {n}, DType::kF32);
    for (size_t s = 0; s < optimizer->state_names().size(); ++s) piece.state.push_back(Tensor::Zeros({n}, DType::kF32));
  }
  for (int step = 1; step <= kSteps; ++step) {
    for (int64_t i = 0; i < kSize; ++i) grads[i] = Grad(step, i);
    optimizer->Step(pool, {.step = step, .learning_rate = kRate, .grad_scale = kScale}, absl::MakeSpan(pieces));
  }
  return weights;
}

class OptimizerTable : public testing::TestWithParam<OptimizerRow> {};

TEST_P(OptimizerTable, EqualsTextbookHoweverCut) {
  for (const ParamClass param_class : {ParamClass::kMatrix, ParamClass::kVector}) {
    const auto whole = RunSteps(GetParam().config, param_class, {0, kSize}, 1);
    double worst = 0;
    for (int64_t i = 0; i < kSize; i += 97) {
      double w = static_cast<double>(Start(i));
      std::vector<double> state(2);
      for (int step = 1; step <= kSteps; ++step)
        GetParam().textbook(step, kScale * static_cast<double>(Grad(step, i)), w, state,
                            param_class == ParamClass::kVector);
      worst = std::max(worst, std::abs(static_cast<double>(whole[i]) - w));
    }
    EXPECT_LT(worst, 2e-6);
    for (const auto& borders : std::vector<std::vector<int64_t>>{{0, 1, 1, 17, 40000, kSize}, {0, 65536, kSize}}) {
      for (const int threads : {1, 3}) {
        const auto cut = RunSteps(GetParam().config, param_class, borders, threads);
        EXPECT_EQ(0, std::memcmp(cut.data(), whole.data(), kSize * sizeof(float))) << threads << " threads";
      }
    }
    OnEachDispatchTarget([&, param_class] {
      EXPECT_EQ(whole, RunSteps(GetParam().config, param_class, {0, kSize}, 1)) << "differs between dispatch targets";
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerTable, testing::ValuesIn(Table()),
                         [](const auto& info) { return info.param.name; });

TEST(Optimizers, EveryOptionOutOfRangeIsNamed) {
  config::OptimConfig config;
  config.mutable_adamw()->set_beta1(1);
  config.mutable_adamw()->set_weight_decay(-1);
  config.set_clip_norm(-2);
  const std::string message(MakeOptimizer(config).status().message());
  EXPECT_THAT(message, testing::HasSubstr("optim.adamw.beta1 is 1; it lies in [0, 1)"));
  EXPECT_THAT(message, testing::HasSubstr("optim.adamw.weight_decay is -1"));
  EXPECT_THAT(message, testing::HasSubstr("optim.clip_norm is -2"));
}

TEST(Schedule, WarmsUpAndFollowsItsShape) {
  config::ScheduleConfig s;
  s.mutable_warmup()->set_steps(4);
  config::Duration total;
  total.set_steps(24);
  const auto at = [&](int64_t step) { return ScheduleFactor(s, {.steps = step}, total); };
  EXPECT_DOUBLE_EQ(at(0), 0.25);
  EXPECT_DOUBLE_EQ(at(3), 1);
  EXPECT_DOUBLE_EQ(at(4), 1);
  EXPECT_DOUBLE_EQ(at(14), 0.55);
  EXPECT_NEAR(at(24), 0.1, 1e-12);
  s.set_shape(config::ScheduleConfig::LINEAR);
  EXPECT_DOUBLE_EQ(at(14), 0.55);
  s.set_shape(config::ScheduleConfig::WSD);
  EXPECT_DOUBLE_EQ(at(20), 1);
  EXPECT_DOUBLE_EQ(at(22), 0.55);
  s.set_shape(config::ScheduleConfig::CONSTANT);
  EXPECT_DOUBLE_EQ(at(24), 1);
  total.set_tokens(1000);
  s.set_shape(config::ScheduleConfig::LINEAR);
  EXPECT_DOUBLE_EQ(ScheduleFactor(s, {.steps = 10, .tokens = 500}, total), 0.55);
}

TEST(Guard, SkipsThenGivesUp) {
  config::GuardConfig config;
  config.set_max_skipped(2);
  config.set_z_score(6);
  config.set_z_window(16);
  Guard guard(config);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(*guard.Check(3 + 0.01 * (i % 3), 1), "");
  EXPECT_THAT(*guard.Check(9, 1), testing::HasSubstr("loss 9 is more than 6 deviations out"));
  EXPECT_THAT(*guard.Check(std::nan(""), 1), testing::HasSubstr("not finite"));
  const auto last = guard.Check(3, INFINITY);
  EXPECT_EQ(ExitCodeFor(last.status()), ExitCode::kDiverged);
  EXPECT_EQ(*Guard(config).Check(3, 1), "");
}

}  // namespace
}  // namespace shoal
