#include "models/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/transformer_spec.h"

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

}  // namespace
}  // namespace shoal
