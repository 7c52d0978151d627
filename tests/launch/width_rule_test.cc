// Width rules in whole models: the coordinate check (arXiv 2203.03466, appendix D.1), and jobs that name a rule.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/model_setup.h"
#include "launch/optimizer_setup.h"
#include "launch/resolve.h"
#include "launch/workload.h"
#include "models/transformer.h"
#include "optim/optimizer_state.h"
#include "parallel/mesh.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using testing::HasSubstr;

const char* const kText =
    "model { transformer { preset: LLAMA layers: 2 width: 64 heads: 4 vocabulary: 64 tied_head: false } }\n"
    "data { dataset { path: \"x\" } max_tokens: 32 } global_batch { tokens: 64 } duration { steps: 4 }\n";

absl::StatusOr<config::Job> Resolved(const std::string& text, const std::vector<std::string>& sets) {
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(text, "f", loaded.job, errors, loaded.places);
  for (const auto& set : sets) ApplySet(set, "--set", loaded.job, errors, loaded.places);
  EXPECT_TRUE(errors.Result().ok()) << errors.Result();
  return ResolveJob(loaded, 1);
}

// Two sequences of random tokens.
Batch RandomTokens() {
  constexpr int32_t kLength = 32, kVocabulary = 64;
  const Rng rng({7, RngPurpose::kTest, 1});
  MicroBatch micro;
  micro.cu_seqlens = {0, kLength, 2 * kLength};
  micro.sample_ids = {0, 1};
  micro.max_len = kLength;
  for (int32_t t = 0; t < 2 * kLength; ++t) {
    micro.tokens.push_back(static_cast<int32_t>(rng.Uniform53(0, static_cast<uint64_t>(t)) * kVocabulary));
    micro.labels.push_back(static_cast<int32_t>(rng.Uniform53(1, static_cast<uint64_t>(t)) * kVocabulary));
    micro.positions.push_back(t % kLength);
  }
  return ToBatch(micro);
}

// By how much some steps move what the model computes, in root mean squares.
struct Moved {
  double hidden = 0, logits = 0;
};

// One rank's model of a job, trained step by step on one batch.
class Training {
 public:
  Training(const config::Job& job, Communicator& world) : job_(job), pool_(1) {
    model_ = *ModelFor(job);
    mesh_ = *Mesh::Create(world, {});
    optimizer_ = *OptimizerFor(job, *model_);
    dp_ = *DataParallel::Create(model_->params(), *mesh_, StorageFor(job, *model_, *optimizer_));
    state_ = std::make_unique<OptimizerState>(*optimizer_, dp_->pieces(), DeviceKind::kCpu);
    owners_ = MakeOwnerSum(*mesh_, job.parallel().zero());
    arena_ = *Arena::Create(256 << 20, DeviceKind::kCpu);
    dp_->InitializeWeights(pool_, 1);
  }

  void Step() {
    dp_->BeginStep();
    ASSERT_EQ(dp_->BeginMicroBatch(DataParallel::MicroBatch::kLast), absl::OkStatus());
    {
      StepContext ctx(Options(Mode::kTrain));
      model_->Backward(ctx, model_->Forward(ctx, batch_));
    }
    ASSERT_EQ(dp_->FinishReductions(), absl::OkStatus());
    OptimizerStep step{.learning_rate = job_.optim().learning_rate()};
    state_->BeginUpdate(1, step);
    ASSERT_EQ(optimizer_->Step({pool_, *owners_}, step, state_->shard()), absl::OkStatus());
    ASSERT_EQ(dp_->PublishWeights(pool_), absl::OkStatus());
  }

  // Final hidden rows, then logits.
  std::pair<std::vector<float>, std::vector<float>> Outputs() {
    auto& transformer = static_cast<Transformer&>(*model_);
    StepContext ctx(Options(Mode::kEval));
    const Batch hidden = transformer.Hidden(ctx, batch_);
    const Tensor logits = transformer.head().Logits(ctx, hidden.x);
    const auto h = hidden.x.span<float>(), l = logits.span<float>();
    std::pair<std::vector<float>, std::vector<float>> out{{h.begin(), h.end()}, {l.begin(), l.end()}};
    ctx.DropFrames(0);
    arena_->Rewind(0);
    return out;
  }

 private:
  StepContext::Options Options(Mode mode) {
    return {.ops = {.pool = &pool_},
            .arena = arena_.get(),
            .params = dp_.get(),
            .mode = mode,
            .grad_scale = 1.0 / static_cast<double>(batch_.x.size())};
  }
  const config::Job& job_;
  ThreadPool pool_;
  const Batch batch_ = RandomTokens();
  std::unique_ptr<Model> model_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<DataParallel> dp_;
  std::unique_ptr<OptimizerState> state_;
  std::unique_ptr<OwnerSum> owners_;
  std::unique_ptr<Arena> arena_;
};

double RmsDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
  return std::sqrt(sum / static_cast<double>(a.size()));
}

Moved Train(const std::vector<std::string>& sets, int steps) {
  const auto job = Resolved(kText, sets);
  EXPECT_TRUE(job.ok()) << job.status();
  Moved moved;
  const absl::Status status = RunThreadRanks(1, {}, [&](int, Communicator& world) -> absl::Status {
    Training training(*job, world);
    const auto before = training.Outputs();
    for (int i = 0; i < steps; ++i) training.Step();
    const auto after = training.Outputs();
    moved = {RmsDifference(after.first, before.first), RmsDifference(after.second, before.second)};
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return moved;
}

TEST(CoordinateCheck, ChangesDoNotGrowWithTheWidthUnderMup) {
  constexpr int kSteps = 3;
  struct Row {
    const char* tied;
    enum class Grows { kHeads, kHeadSize } grows;
  };
  for (const Row& row : {Row{"false", Row::Grows::kHeads}, Row{"true", Row::Grows::kHeadSize}}) {
    std::map<int, Moved> plain, mup;
    for (const int width : {64, 128, 256}) {
      SCOPED_TRACE(absl::StrCat("width ", width, ", tied head: ", row.tied));
      std::vector<std::string> sets = {
          "optim.learning_rate=1e-3", absl::StrCat("model.transformer.width=", width),
          absl::StrCat("model.transformer.tied_head=", row.tied),
          absl::StrCat("model.transformer.heads=", row.grows == Row::Grows::kHeads ? width / 16 : 4)};
      plain[width] = Train(sets, kSteps);
      sets.emplace_back("optim.width_rule={ preset: MUP base_width: 64 base_head_size: 16 }");
      mup[width] = Train(sets, kSteps);
      EXPECT_LT(mup[width].hidden, 1.1 * mup[64].hidden);
      EXPECT_LT(mup[width].logits, 1.1 * mup[64].logits);
      EXPECT_GT(mup[width].hidden, 0.8 * mup[64].hidden);
      if (width == 64) continue;
      EXPECT_GT(plain[width].hidden, 1.2 * plain[width / 2].hidden);
      EXPECT_GT(plain[width].logits, 1.6 * plain[width / 2].logits);
    }
    EXPECT_EQ(mup[64].hidden, plain[64].hidden) << "at base width a rule changes nothing";
    EXPECT_EQ(mup[64].logits, plain[64].logits);
  }
}

TEST(WidthRuleOfJobs, WhatIsMissingIsNamedWithItsPlace) {
  const auto refused = [](const std::string& rule, const std::string& message) {
    const absl::Status status = Resolved(absl::StrCat(kText, "optim {\n  ", rule, " }"), {}).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kConfig);
    EXPECT_THAT(status.message(), HasSubstr(message));
  };
  refused("width_rule { preset: MUP }",
          "f:4:3: optim.width_rule has no base_width, the width at which rate and decay were tuned; write width_rule { "
          "base_width: 256 }");
  refused("width_rule { preset: COMPLETE_P base_width: 64 }", "f:4:3: optim.width_rule has no base_depth");
  refused("width_rule { base_width: 0 }", "f:4:16: optim.width_rule.base_width is 0");
  refused("width_rule { base_width: 64 } lars { }", "f:4:3: optim.width_rule does not apply to LARS");
  const absl::Status images = Resolved(
                                  "model { resnet { width: 16 image_size: 8 channels: 3 classes: 5 } }\n"
                                  "data { images { path: \"x\" } } global_batch { images: 8 } duration { steps: 4 }\n"
                                  "optim { width_rule { base_width: 64 } }",
                                  {})
                                  .status();
  EXPECT_THAT(images.message(), HasSubstr("f:3:9: optim.width_rule is for transformers"));
}

}  // namespace
}  // namespace shoal
