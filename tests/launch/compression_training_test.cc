// Training whose gradients travel encoded: it learns, resumes bit for bit, and a step that is skipped leaves no trace.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "absl/strings/match.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "parallel/checkpoint/safetensors.h"
#include "tests/launch/trainer_fixture.h"

namespace shoal {
namespace {

class CompressionTrainingTest : public TrainerTest {};

TEST_F(CompressionTrainingTest, EncodedGradientsLearnAndResumeBitForBit) {
  const Result plain = Run(Job({"optim.schedule.shape=CONSTANT"}), 2);
  for (const char* codec : RowsToTry<const char*>({"q4", "q4_stochastic", "bf16", "topk_0.1"})) {
    for (const char* zero :
         RowsToTry<const char*>({"parallel.zero=0", "parallel.zero=1", "parallel.zero=2", "parallel.zero=3"})) {
      if (codec[0] == 't' && zero[14] >= '2') continue;  // refused
      const auto job = [&](std::vector<std::string> more) {
        more.insert(more.end(), {std::string("comm.compression={ mode: UNIFORM codec: \"") + codec +
                                     "\" block: 128 min_elements: 512 }",
                                 "comm.check_calls=true", zero, "optim.schedule.shape=CONSTANT"});
        return Job(more);
      };
      const std::string run = folder_ + "/run_" + codec + zero;
      const Result whole = Run(job({}), 2);
      ASSERT_EQ(whole.losses.size(), 8u);
      EXPECT_NEAR(whole.losses[0], plain.losses[0], 1e-6);
      EXPECT_NE(whole.losses.back(), plain.losses.back()) << "it was in use";
      if (codec[0] == 't') {
        EXPECT_LT(whole.losses.back(), whole.losses.front() - 0.3) << "it learns";
      } else {
        EXPECT_NEAR(whole.losses.back(), plain.losses.back(), 0.03) << codec << " " << zero;
      }
      Run(job({"duration.steps=3"}), 2, run);
      EXPECT_EQ(Run(job({}), 2, run).weights, whole.weights) << codec << " " << zero;
    }
  }
}

// Planned by bytes: by time, plans depend on the clock.
TEST_F(CompressionTrainingTest, PlannedGradientsLearnAndResumeBitForBit) {
  const Result plain = Run(Job({"optim.schedule.shape=CONSTANT"}), 2);
  for (const char* zero :
       RowsToTry<const char*>({"parallel.zero=0", "parallel.zero=1", "parallel.zero=2", "parallel.zero=3"})) {
    const auto job = [&](std::vector<std::string> more) {
      more.insert(more.end(),
                  {"comm.compression={ mode: LGRECO_BYTES block: 128 min_elements: 512 warmup_steps: 3 table_steps: 1 "
                   "lead_steps: 1 replan_every_steps: 4 }",
                   "comm.check_weights_every_steps=2", zero, "optim.schedule.shape=CONSTANT"});
      return Job(more);
    };
    const std::string run = folder_ + "/planned_" + zero;
    const Result whole = Run(job({}), 2);
    ASSERT_EQ(whole.losses.size(), 8u);
    for (int step = 0; step < 3; ++step) EXPECT_NEAR(whole.losses[step], plain.losses[step], 1e-5) << "exact at first";
    EXPECT_NE(whole.losses.back(), plain.losses.back()) << "it was in use";
    EXPECT_NEAR(whole.losses.back(), plain.losses.back(), 0.03) << zero;
    Run(job({"duration.steps=4"}), 2, run);
    EXPECT_EQ(Run(job({}), 2, run).weights, whole.weights) << zero;
    std::ifstream plans(run + "/plans/compression.jsonl");
    std::string line;
    ASSERT_TRUE(std::getline(plans, line));
    EXPECT_THAT(line, testing::HasSubstr("\"bits_per_element\""));
  }
}

TEST_F(CompressionTrainingTest, PlannedByTimeTrains) {
  for (const char* zero : {"parallel.zero=0", "parallel.zero=3"}) {
    const Result result =
        Run(Job({"comm.compression={ mode: LGRECO_TIME block: 128 min_elements: 512 warmup_steps: 3 table_steps: 1 "
                 "lead_steps: 1 replan_every_steps: 4 }",
                 "micro_batch={ tokens: 128 }", zero}),
            2);
    ASSERT_EQ(result.losses.size(), 8u);
    EXPECT_LT(result.losses.back(), result.losses.front());
  }
}

TEST_F(CompressionTrainingTest, CodesThatWantWholeGradientsAreRefusedWhereTheyAreShared) {
  for (const char* codec : {"topk_0.1", "powersgd_2"}) {
    const auto job =
        Resolved({absl::StrCat("comm.compression={ mode: UNIFORM codec: \"", codec, "\" }"), "parallel.zero=2"}, 2);
    ASSERT_FALSE(job.ok());
    EXPECT_THAT(
        std::string(job.status().message()),
        testing::HasSubstr(absl::StrCat("comm.compression.codec is ", codec, ", which takes gradients that are")));
    EXPECT_THAT(std::string(job.status().message()), testing::HasSubstr("take parallel.zero: 0 or 1"));
  }
}

// The embedding of a sign that occurs once is NaN, and so are the gradients of the step that meets it. Its checkpoint
// holds, residuals and factors included, what the one before it holds, and a run that begins there, knowing nothing
// else, goes on as the one that met the NaN does.
TEST_F(CompressionTrainingTest, AStepWithANaNLeavesNothingBehind) {
  const std::string data = folder_ + "/with_sign", exported = folder_ + "/fine.safetensors",
                    spoiled = folder_ + "/spoiled.safetensors";
  constexpr int kSteps = 12;
  WriteDocuments(data, 33);
  Run(Job({"duration.steps=1"}), 1, folder_ + "/first");
  ASSERT_TRUE(ExportWeights(folder_ + "/first", exported, Weights::kTrained).ok());
  const auto file = SafetensorsFile::Open(exported);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<NamedTensor> weights;
  for (const auto& [name, entry] : (*file)->entries()) {
    Tensor weight = (*file)->View(entry);
    if (name == "tokens.weight") {
      const Tensor view = weight;
      weight = Tensor::Zeros(entry.shape, DType::kF32);
      std::memcpy(weight.raw(), view.raw(), static_cast<size_t>(view.bytes()));
      std::fill_n(weight.data<float>() + '#' * entry.shape[1], entry.shape[1], std::nanf(""));
    }
    weights.push_back({name, weight});
  }
  ASSERT_TRUE(WriteSafetensors(PosixFiles(), spoiled, weights).ok());

  for (const char* codec : RowsToTry<const char*>({"q4", "ecsq_3", "powersgd_2"})) {
    SCOPED_TRACE(codec);
    const auto job = [&](int steps) {
      return Job(
          {"global_batch={ tokens: 512 }",
           absl::StrCat("data={ dataset { path: \"", data, "\" } max_tokens: 48 held_out: 0.1 }"),
           "model.initial_weights=" + spoiled,
           absl::StrCat("comm.compression={ mode: UNIFORM codec: \"", codec, "\" block: 128 min_elements: 512 }"),
           absl::StrCat("duration.steps=", steps), "optim.schedule.shape=CONSTANT"});
    };
    const Result whole = Run(job(kSteps), 2);
    ASSERT_EQ(whole.losses.size(), static_cast<size_t>(kSteps));
    const auto bad = static_cast<int>(
        std::find_if(whole.losses.begin(), whole.losses.end(), [](double l) { return std::isnan(l); }) -
        whole.losses.begin());
    ASSERT_GT(bad, 1) << "residuals are there before it";
    ASSERT_LT(bad, kSteps - 1) << "and steps are taken after it";
    for (int step = 0; step < kSteps; ++step)
      EXPECT_EQ(std::isfinite(whole.losses[step]), step != bad) << "step " << step;
    const std::string run = folder_ + "/run_" + codec;
    Run(job(bad), 2, run);
    Run(job(bad + 1), 2, run);
    const auto checkpoint = [&](int step) {
      return CheckpointReader::Open(absl::StrFormat("%s/checkpoints/step-%08d", run, step)).value();
    };
    const CheckpointReader before = checkpoint(bad), after = checkpoint(bad + 1);
    int64_t residuals = 0;
    for (const auto& [name, tensor] : before.manifest().tensors) {
      const Tensor was = before.Read(name).value(), is = after.Read(name).value();
      EXPECT_EQ(std::memcmp(was.raw(), is.raw(), static_cast<size_t>(was.bytes())), 0) << name;
      residuals += absl::EndsWith(name, "/residual") ? 1 : 0;
    }
    EXPECT_GT(residuals, 10);
    EXPECT_EQ(Run(job(kSteps), 2, run).weights, whole.weights);
  }
}

}  // namespace
}  // namespace shoal
