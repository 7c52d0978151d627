#include "models/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "models/transformer.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/file_system.h"
#include "runtime/module/local_params.h"
#include "runtime/module/step_context.h"

namespace shoal {
namespace {

using testing::HasSubstr;

// Written by transformers: golden/make_hugging_face.py.
const std::string kGolden = "tests/models/golden/";

Tensor Logits(const HuggingFaceModel& model, const Tensor& tokens, const WidthMultipliers& multipliers = {}) {
  Transformer transformer(model.config, Recomputed::kNothing, multipliers);
  LocalParams params(transformer.params(), DType::kF32);
  ThreadPool pool(1);
  OpContext ops{.pool = &pool};
  for (const Param* param : transformer.params()) ops::Copy(ops, model.weights.at(param->name), params.Weight(*param));
  auto arena = Arena::Create(64 << 20, DeviceKind::kCpu);
  StepContext ctx({.ops = ops, .arena = arena->get(), .params = &params, .mode = Mode::kEval});
  const int64_t count = tokens.size();
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = {0, static_cast<int32_t>(count)};
  layout->max_len = static_cast<int32_t>(count);
  layout->positions = Tensor::Zeros({count}, DType::kI32);
  std::iota(layout->positions.data<int32_t>(), layout->positions.data<int32_t>() + count, 0);
  const Tensor ids = Tensor::Zeros({count}, DType::kI32);
  for (int64_t i = 0; i < count; ++i) ids.data<int32_t>()[i] = static_cast<int32_t>(tokens.data<int64_t>()[i]);
  const Batch hidden = transformer.Hidden(ctx, {ids, layout});
  const Tensor live = transformer.head().Logits(ctx, hidden.x);
  const Tensor logits = Tensor::Zeros(live.shape(), DType::kF32);
  ops::Copy(ops, live, logits);
  ctx.DropFrames(0);
  return logits;
}

class HuggingFace : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, HuggingFace, testing::Values("gpt2", "llama", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(HuggingFace, LogitsEqualTransformers) {
  const auto model = ReadHuggingFace(kGolden + GetParam());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto golden = SafetensorsFile::Open(kGolden + GetParam() + "_logits.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const Tensor expected = (*golden)->View((*golden)->entries().at("logits"));
  const Tensor logits = Logits(*model, (*golden)->View((*golden)->entries().at("tokens")));
  ASSERT_EQ(logits.shape(), expected.shape());
  for (int64_t i = 0; i < logits.size(); ++i)
    ASSERT_NEAR(logits.data<float>()[i], expected.data<float>()[i], 2e-5) << "element " << i;
}

// What Shoal writes holds the names, shapes and values that transformers wrote, so that transformers reads it.
TEST_P(HuggingFace, WritesWhatItRead) {
  const auto model = ReadHuggingFace(kGolden + GetParam());
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string folder = testing::TempDir() + "/hugging_face_" + GetParam();
  std::filesystem::remove_all(folder);
  const auto read = [&](const std::string& name) -> absl::StatusOr<Tensor> { return model->weights.at(name); };
  ASSERT_EQ(WriteHuggingFace(model->config, {}, read, folder), absl::OkStatus());
  const auto theirs = SafetensorsFile::Open(kGolden + GetParam() + "/model.safetensors"),
             ours = SafetensorsFile::Open(folder + "/model.safetensors");
  ASSERT_TRUE(theirs.ok() && ours.ok());
  ASSERT_EQ((*theirs)->entries().size(), (*ours)->entries().size());
  for (const auto& [name, entry] : (*theirs)->entries()) {
    ASSERT_EQ((*ours)->entries().count(name), 1) << name;
    const Tensor a = (*theirs)->View(entry), b = (*ours)->View((*ours)->entries().at(name));
    ASSERT_EQ(a.shape(), b.shape()) << name;
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())), 0) << name;
  }
  const auto again = ReadHuggingFace(folder);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->config.SerializeAsString(), model->config.SerializeAsString());
  EXPECT_THAT(WriteHuggingFace(model->config, {}, read, folder).message(), HasSubstr("holds a model already"));
}

TEST_P(HuggingFace, MultipliersAreFoldedIntoWeightsAndBack) {
  const WidthMultipliers multipliers{.attention = 2, .readout = 0.25, .residual = 0.5};
  const auto model = ReadHuggingFace(kGolden + GetParam());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto golden = SafetensorsFile::Open(kGolden + GetParam() + "_logits.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const Tensor tokens = (*golden)->View((*golden)->entries().at("tokens"));
  const std::string folder = testing::TempDir() + "/hugging_face_folded_" + GetParam();
  std::filesystem::remove_all(folder);
  const auto read = [&](const std::string& name) -> absl::StatusOr<Tensor> { return model->weights.at(name); };
  ASSERT_EQ(WriteHuggingFace(model->config, multipliers, read, folder), absl::OkStatus());
  const auto plain = ReadHuggingFace(folder), back = ReadHuggingFace(folder, multipliers);
  ASSERT_TRUE(plain.ok() && back.ok());
  const Tensor expected = Logits(*model, tokens, multipliers), logits = Logits(*plain, tokens);
  for (int64_t i = 0; i < logits.size(); ++i)
    ASSERT_NEAR(logits.data<float>()[i], expected.data<float>()[i], 2e-5) << "element " << i;
  for (const auto& [name, tensor] : model->weights) {
    EXPECT_EQ(std::memcmp(tensor.raw(), back->weights.at(name).raw(), static_cast<size_t>(tensor.bytes())), 0)
        << name << ": these factors are powers of two";
  }
}

struct Unfit {
  const char* model;
  const char* from;
  const char* to;
  const char* message;
};
void PrintTo(const Unfit& row, std::ostream* out) { *out << row.to; }

class HuggingFaceRefuses : public testing::TestWithParam<Unfit> {};
TEST_P(HuggingFaceRefuses, WhatTheLayersDoNotDo) {
  const Unfit& row = GetParam();
  const std::string folder = testing::TempDir() + "/hugging_face_unfit_" + absl::StrCat(getpid());  // rows run at once
  std::filesystem::remove_all(folder);
  std::filesystem::copy(kGolden + row.model, folder);
  const std::string config = PosixFiles().Read(folder + "/config.json").value();
  const std::string changed = absl::StrReplaceAll(config, {{row.from, row.to}});
  ASSERT_NE(changed, config);
  std::ofstream(folder + "/config.json") << changed;
  const auto model = ReadHuggingFace(folder);
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.status().message(), HasSubstr(row.message));
}
INSTANTIATE_TEST_SUITE_P(
    All, HuggingFaceRefuses,
    testing::Values(
        Unfit{"gpt2", "gelu_new", "relu", "'activation_function' is \"relu\"; these layers do \"gelu_new\""},
        Unfit{"gpt2", "\"gpt2\"", "\"gpt_neox\"", "Shoal reads \"gpt2\", \"llama\" and \"qwen3\""},
        Unfit{"gpt2", "\"n_layer\": 2", "\"n_layer\": 3", "tensor 'transformer.h.2.ln_1.weight' is missing"},
        Unfit{"gpt2", "\"n_embd\": 16", "\"n_embd\": 32", "has shape [40, 16], config.json says [40, 32]"},
        Unfit{"gpt2", "\"n_head\": 4,", "\"n_head\": \"4\",", "'n_head' is not a whole number"},
        Unfit{"gpt2", "}", "", "is no JSON object"},
        Unfit{"llama", "\"default\"", "\"llama3\"", "'rope_parameters.rope_type' is \"llama3\""},
        Unfit{"llama", "\"head_dim\": 4", "\"head_dim\": 8", "'head_dim' is not hidden_size"}));

TEST(HuggingFaceShapes, ModelsWithoutAnArchitectureThereAreRefused) {
  config::TransformerConfig c = ReadHuggingFace(kGolden + "llama").value().config;
  c.set_norm(config::TransformerConfig::LAYER_NORM);
  const auto never = [](const std::string&) -> absl::StatusOr<Tensor> { return absl::InternalError("read"); };
  EXPECT_THAT(WriteHuggingFace(c, {}, never, testing::TempDir() + "/never").message(),
              HasSubstr("rotary positions with norm: LAYER_NORM"));
}

}  // namespace
}  // namespace shoal
