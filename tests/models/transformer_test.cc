#include "models/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/transformer_spec.h"
#include "runtime/module/local_params.h"

namespace shoal {
namespace {

using config::TransformerConfig;

TransformerConfig Gpt2Small() {
  TransformerConfig c;
  c.set_preset(TransformerConfig::GPT2);
  c.set_layers(12);
  c.set_width(768);
  c.set_heads(12);
  c.set_vocabulary(50257);
  c.set_max_positions(1024);
  return c;
}

TEST(Transformer, Gpt2SmallHasThePublishedParameterCount) {
  const auto config = ResolveTransformer(Gpt2Small(), 1024);
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(ParameterCount(*config), 124439808);
  int64_t counted = 0;
  const Transformer model(*config);
  for (const Param* param : model.params()) counted += param->size();
  EXPECT_EQ(counted, 124439808);
}

TEST(Transformer, CountEqualsTheModelsParametersForLlamaStyle) {
  TransformerConfig c;
  c.set_preset(TransformerConfig::LLAMA);
  c.set_layers(3);
  c.set_width(96);
  c.set_heads(6);
  c.set_kv_heads(2);
  c.set_qk_norm(true);
  const auto config = ResolveTransformer(c, 128);
  ASSERT_TRUE(config.ok()) << config.status();
  int64_t counted = 0;
  const Transformer model(*config);
  for (const Param* param : model.params()) counted += param->size();
  EXPECT_EQ(ParameterCount(*config), counted);
  EXPECT_EQ(config->ffn(), 256);
}

TEST(Transformer, ImpossibleShapesAreAllNamedWithTheNearestPossible) {
  TransformerConfig c = Gpt2Small();
  c.set_heads(10);
  c.set_kv_heads(3);
  c.set_max_positions(512);
  c.set_dropout(1);
  const auto config = ResolveTransformer(c, 1024);
  ASSERT_FALSE(config.ok());
  const std::string message(config.status().message());
  EXPECT_THAT(message, testing::HasSubstr("heads is 10 and width is 768; heads must divide width, the nearest is 12"));
  EXPECT_THAT(message,
              testing::HasSubstr("kv_heads is 3 and heads is 10; kv_heads must divide heads, the nearest is 2"));
  EXPECT_THAT(message, testing::HasSubstr("max_positions is 512 and data.max_tokens is 1024"));
  EXPECT_THAT(message, testing::HasSubstr("dropout is 1"));
}

// A rank without tokens runs every pass that others run (ZeRO 3): no op may mind, and nothing comes of it.
TEST(Transformer, ABatchWithoutRowsAddsNothing) {
  for (const DType compute : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (const auto preset : {TransformerConfig::GPT2, TransformerConfig::LLAMA}) {
      for (const Recomputed recomputed : {Recomputed::kNothing, Recomputed::kMlps, Recomputed::kBlocks}) {
        TransformerConfig c;
        c.set_preset(preset);
        c.set_layers(2);
        c.set_width(32);
        c.set_heads(4);
        c.set_vocabulary(48);
        c.set_dropout(0.2);
        c.set_tied_head(preset == TransformerConfig::GPT2);
        if (preset == TransformerConfig::LLAMA) {
          c.set_kv_heads(2);
          c.set_qk_norm(true);
        }
        Transformer model(*ResolveTransformer(c, 16), recomputed);
        ThreadPool pool(2);
        LocalParams params(model.params(), compute);
        params.Initialize(pool, 3);
        const auto arena = *Arena::Create(1 << 26, DeviceKind::kCpu);
        auto layout = std::make_shared<SeqLayout>();
        layout->cu_seqlens = {0};
        layout->positions = layout->labels = Tensor::Zeros({0}, DType::kI32);
        layout->token_counters = Tensor::Zeros({0}, DType::kI64);
        const Batch batch{layout->positions, layout};
        StepContext::Options options{
            .ops = {.pool = &pool}, .arena = arena.get(), .params = &params, .compute = compute};
        params.BeginStep();
        {
          StepContext ctx(options);
          model.Backward(ctx, model.Forward(ctx, batch));
          EXPECT_EQ(ctx.losses().at("loss"), std::pair(0.0, 0.0));
        }
        EXPECT_EQ(params.ready().size(), model.params().size()) << "everything had its turn";
        for (const Param* param : model.params()) {
          const GradSink sink = params.Grad(*param);
          ASSERT_EQ(sink.accumulate, ops::Accumulate::kAdd) << param->name;
          for (int64_t i = 0; i < param->size(); ++i) {
            const double value = sink.grad.dtype() == DType::kF64 ? sink.grad.data<double>()[i]
                                                                  : static_cast<double>(sink.grad.data<float>()[i]);
            ASSERT_EQ(value, 0) << param->name;
          }
        }
        options.mode = Mode::kEval;
        StepContext ctx(options);
        model.Forward(ctx, batch);
        EXPECT_EQ(ctx.losses().at("loss"), std::pair(0.0, 0.0));
      }
    }
  }
}

}  // namespace
}  // namespace shoal
