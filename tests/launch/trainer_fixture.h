// Small training jobs on made-up documents, run on thread ranks.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/resolve.h"
#include "launch/trainer.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/rows_to_try.h"

namespace shoal {

// The job of `text` with `sets`, ready for Train.
inline absl::StatusOr<config::Job> ResolvedText(const std::string& text, const std::vector<std::string>& sets,
                                                int ranks) {
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(text, "test", loaded.job, errors, loaded.places);
  for (const auto& set : sets) ApplySet(set, "--set", loaded.job, errors, loaded.places);
  EXPECT_TRUE(errors.Result().ok()) << errors.Result();
  SHOAL_ASSIGN_OR_RETURN(config::Job job, ResolveJob(loaded, ranks));
  job.mutable_runtime()->set_compute(SettleCompute(job, WeakestHost::kHasNone).compute);
  return job;
}

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/trainer_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    WriteDocuments(folder_ + "/data", -1);
  }
  // One of them with a '#' among its letters.
  static void WriteDocuments(const std::string& path, int with_sign) {
    auto writer = *DatasetWriter::Create(PosixFiles(), path, 256);
    for (int d = 0; d < 40; ++d) {
      std::string text;
      for (int i = 0; i < 20 + 13 * d; ++i) text += static_cast<char>('a' + (i * (d % 5 + 1)) % 26);
      if (d == with_sign) text[text.size() / 2] = '#';
      ASSERT_TRUE(writer->AddDocumentBytes(text).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  }

  absl::StatusOr<config::Job> Resolved(const std::vector<std::string>& sets, int ranks) const {
    return ResolvedText(absl::StrFormat(R"(
      model { transformer { preset: LLAMA layers: 2 width: 32 heads: 4 kv_heads: 2 dropout: 0.1 } }
      data { dataset { path: "%s" } max_tokens: 48 held_out: 0.1 }
      global_batch { tokens: %d } duration { steps: 8 }
      optim { learning_rate: 3e-3 schedule { warmup { steps: 2 } } }
    )",
                                        folder_ + "/data", kThreadSanitizer ? 256 : 512),
                        sets, ranks);
  }
  config::Job Job(const std::vector<std::string>& sets = {}) const {
    const auto job = Resolved(sets, 0);
    EXPECT_TRUE(job.ok()) << job.status();
    return *job;
  }

  struct Result {
    absl::Status status;
    std::vector<double> losses;
    std::string weights;
    TrainOutcome outcome;
  };
  // Trains with these options on thread ranks; what rank 0 saw.
  static Result Start(TrainerOptions options, int ranks, int threads = 1) {
    Result result;
    if (!options.run_dir.empty()) std::filesystem::create_directories(options.run_dir + "/checkpoints");
    options.console = TrainerOptions::Console::kQuiet;
    result.status = RunThreadRanks(ranks, {}, [&](int r, Communicator& world) -> absl::Status {
      RankContext rank{.rank = r, .size = ranks, .host = "", .pool = std::make_unique<ThreadPool>(threads)};
      TrainerOptions mine = options;
      std::string weights;
      mine.weights = r == 0 ? &result.weights : &weights;
      if (r == 0) mine.losses = &result.losses;
      SHOAL_ASSIGN_OR_RETURN(const TrainOutcome outcome, Train(rank, world, mine));
      if (r == 0) result.outcome = outcome;
      return absl::OkStatus();
    });
    return result;
  }
  static Result Run(const config::Job& job, int ranks, const std::string& run_dir = "", int threads = 1) {
    Result result = Start({.job = job, .run_dir = run_dir}, ranks, threads);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result;
  }
  std::string folder_;
};

}  // namespace shoal
