#include "models/resnet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "models/resnet_spec.h"
#include "runtime/module/local_params.h"

namespace shoal {
namespace {

using config::ResNetConfig;

ResNetConfig Resolved(ResNetConfig c, const ImageFacts& facts = {224, 3, 1000}) { return *ResolveResNet(c, facts); }
ResNetConfig Preset(ResNetConfig::Preset preset) {
  ResNetConfig c;
  c.set_preset(preset);
  return Resolved(c);
}
int64_t Parameters(const ResNetConfig& c) { return ResNet(c, Recomputed::kNothing).parameter_count(); }

// As torchvision counts them.
TEST(ResNet, HasThePublishedParameters) {
  EXPECT_EQ(Parameters(Preset(ResNetConfig::RESNET18)), 11689512);
  EXPECT_EQ(Parameters(Preset(ResNetConfig::RESNET34)), 21797672);
  EXPECT_EQ(Parameters(Preset(ResNetConfig::RESNET50)), 25557032);
  EXPECT_EQ(Parameters(Preset(ResNetConfig::RESNET101)), 44549160);
  EXPECT_EQ(Parameters(Preset(ResNetConfig::RESNET152)), 60192808);
}

TEST(ResNet, HasThePublishedWork) {
  EXPECT_NEAR(ForwardMacs(Preset(ResNetConfig::RESNET18)) / 1e9, 1.814, 0.001);
  EXPECT_NEAR(ForwardMacs(Preset(ResNetConfig::RESNET50)) / 1e9, 4.089, 0.001);
  EXPECT_NEAR(Activations(Preset(ResNetConfig::RESNET50)) / 1e6, 11.1, 0.1);
}

TEST(ResNet, RsPresetsAreThePapers) {
  const ResNetConfig rs = Preset(ResNetConfig::RS270);
  EXPECT_THAT(rs.depths(), testing::ElementsAre(4, 29, 53, 4));
  EXPECT_EQ(rs.stem(), ResNetConfig::RS);
  EXPECT_EQ(rs.squeeze_excite(), 0.25);
  EXPECT_EQ(rs.stochastic_depth(), 0.1);
  std::vector<double> rates;
  ForEachBlock(rs, [&](const BlockShape& b) {
    if (b.name.substr(b.name.size() - 2) == ".0") rates.push_back(b.drop_rate);
  });
  ASSERT_EQ(rates.size(), 4u);
  for (int j = 0; j < 4; ++j) EXPECT_NEAR(rates[static_cast<size_t>(j)], 0.1 * (j + 2) / 5, 1e-12);
  // 35.7M parameters at depth 50 (tensorflow/tpu).
  EXPECT_NEAR(static_cast<double>(Parameters(Preset(ResNetConfig::RS50))) / 1e6, 35.7, 0.1);
}

TEST(ResNet, CompoundScalingFollowsThePaper) {
  ResNetConfig c;
  c.set_preset(ResNetConfig::RESNET50);
  const ResNetConfig plain = Resolved(c);
  for (const double flops : {2.0, 4.0, 8.0}) {
    for (const double alpha : {0.8, 1.0 / 3, 1.0}) {
      auto scaled = c;
      scaled.mutable_scale()->set_flops(flops);
      scaled.mutable_scale()->set_alpha(alpha);
      const ResNetConfig big = Resolved(scaled);
      EXPECT_FALSE(big.has_scale());
      // Rounding of depths, widths and sizes moves both.
      EXPECT_NEAR(ForwardMacs(big) / ForwardMacs(plain), flops, 0.15 * flops) << flops << " by " << alpha;
      const double activations = std::pow(flops, (1 - alpha) / 2 + alpha / 2 + (1 - alpha) / 2);
      EXPECT_NEAR(Activations(big) / Activations(plain), activations, 0.15 * activations) << flops << " by " << alpha;
    }
  }
}

TEST(ResNet, WrongFieldsAreNamed) {
  ResNetConfig c;
  c.set_dropout(1);
  c.set_groups(3);
  c.set_norm_momentum(0);
  const std::string message(ResolveResNet(c, {}).status().message());
  EXPECT_THAT(message, testing::HasSubstr("model.resnet.dropout is 1; it lies in [0, 1)"));
  EXPECT_THAT(message, testing::HasSubstr("model.resnet.norm_momentum is 0; it lies in (0, 1]"));
  EXPECT_THAT(message, testing::HasSubstr("model.resnet.classes is not set"));
}

// The loss and the right answers of an evaluation are those of Logits.
TEST(ResNet, LogitsAreThoseOfItsLoss) {
  ResNetConfig c;
  c.set_preset(ResNetConfig::CUSTOM);
  for (const int depth : {1, 2}) c.add_depths(depth);
  c.set_width(8);
  c.set_block(ResNetConfig::BASIC);
  c.set_dropout(0.5);
  ResNet model(Resolved(c, {16, 3, 5}), Recomputed::kNothing);
  ThreadPool pool(1);
  const auto arena = *Arena::Create(1 << 24, DeviceKind::kCpu);
  LocalParams params(model.params(), DType::kF64);
  params.Initialize(pool, 3);
  model.VisitBuffers([](Buffer& buffer) {
    for (int64_t i = 0; i < buffer.value.size(); ++i)
      buffer.value.data<float>()[i] = 0.25f * static_cast<float>(1 + i % 2);
  });
  constexpr int64_t kImages = 3, kClasses = 5;
  const Tensor images = Tensor::Zeros({kImages, 16, 16, 3}, DType::kF64);
  for (int64_t i = 0; i < images.size(); ++i) images.data<double>()[i] = std::sin(static_cast<double>(i * i));
  auto layout = std::make_shared<SeqLayout>();
  layout->labels = Tensor::Zeros({kImages}, DType::kI32);
  for (int64_t i = 0; i < kImages; ++i) layout->labels.data<int32_t>()[i] = static_cast<int32_t>(i + 1);
  layout->token_counters = Tensor::Zeros({kImages}, DType::kI64);

  const StepContext::Options options = {
      .ops = {.pool = &pool}, .arena = arena.get(), .params = &params, .compute = DType::kF64, .mode = Mode::kEval};
  StepContext ctx(options);
  const Tensor logits = model.Logits(ctx, images);
  ASSERT_THAT(logits.shape(), testing::ElementsAre(kImages, kClasses));
  double loss = 0, correct = 0;
  for (int64_t i = 0; i < kImages; ++i) {
    const auto* row = logits.data<double>() + i * kClasses;
    double sum = 0;
    for (int64_t k = 0; k < kClasses; ++k) sum += std::exp(row[k]);
    loss += std::log(sum) - row[i + 1];
    correct += std::max_element(row, row + kClasses) == row + i + 1 ? 1 : 0;
  }
  EXPECT_GT(*std::max_element(logits.data<double>(), logits.data<double>() + kClasses), 1e-3);
  StepContext evaluated(options);
  model.Forward(evaluated, {images, layout});
  EXPECT_NEAR(evaluated.losses().at("loss").first, loss, 1e-9 * loss);
  EXPECT_EQ(evaluated.losses().at("correct").first, correct);
}

// Running statistics follow the batches in training once, are used in evaluation, and recomputation does not move them.
TEST(BatchNorm, RunningStatisticsFollowOnce) {
  BatchNorm norm({.name = "n", .channels = 2, .momentum = 0.25});
  ThreadPool pool(1);
  const auto arena = *Arena::Create(1 << 20, DeviceKind::kCpu);
  std::vector<Buffer*> buffers;
  norm.VisitBuffers([&](Buffer& b) { buffers.push_back(&b); });
  const Tensor x = Tensor::Zeros({3, 1, 1, 2}, DType::kF32);
  for (int i = 0; i < 6; ++i) x.data<float>()[i] = static_cast<float>(i);  // channel 0: 0 2 4, channel 1: 1 3 5
  LocalParams none({}, DType::kF32);
  StepContext ctx({.ops = {.pool = &pool}, .arena = arena.get(), .params = &none});
  ctx.set_replaying(true);
  norm.Statistics(ctx, x);
  EXPECT_EQ(buffers[0]->value.data<float>()[1], 0) << "a replay counts nothing";
  ctx.set_replaying(false);
  const auto saved = norm.Statistics(ctx, x);
  EXPECT_EQ(saved.count, 3);
  EXPECT_FLOAT_EQ(saved.mean.data<float>()[1], 3);
  EXPECT_FLOAT_EQ(saved.rstd.data<float>()[0], 1 / std::sqrt(8.0f / 3 + 1e-5f));
  EXPECT_FLOAT_EQ(buffers[0]->value.data<float>()[1], 0.75f);
  EXPECT_FLOAT_EQ(buffers[1]->value.data<float>()[1], 0.75f + 0.25f * 4) << "the unbiased variance";
}

}  // namespace
}  // namespace shoal
