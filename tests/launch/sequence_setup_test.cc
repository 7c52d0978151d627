// The costs that sequence plans start from, against a calibration that is made up and numbers by hand.
#include "launch/sequence_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/predict.h"
#include "launch/resolve.h"

namespace shoal {
namespace {

using testing::HasSubstr;

class SequenceSetup : public testing::Test {
 protected:
  static constexpr int kRanks = 8, kTokens = 64, kLayers = 2, kWidth = 32, kHeads = 8, kKeyHeads = 2, kFfn = 48;
  static constexpr double kHeadSize = 4, kLatency = 1e-4, kPerByte = 1e-9;
  static constexpr double kAttention = 2e-12, kProducts = 3e-12, kCall = 5e-6, kPeak = 1e11;

  void SetUp() override {
    path_ = testing::TempDir() + "/sequence_setup/" + testing::UnitTest::GetInstance()->current_test_info()->name() +
            ".json";
    std::filesystem::remove(path_);
    const config::Job job = Job("");
    Calibration calibration;
    calibration.key = {"node", kRanks, 1, config::RuntimeConfig::FP32};
    calibration.product_peak = kPeak;
    calibration.exchange = {.ranks = kRanks, .all_to_all = {kLatency, kPerByte}};
    for (const auto& [name, cost] : StepCost(job, kRanks, {BatchShape{{0, kTokens}, {}, {}}}).ops) {
      OpRate& rate = calibration.ops[name];
      if (absl::StartsWith(name, "Attention")) rate.flop = kAttention;
      if (absl::StartsWith(name, "Matmul")) rate.flop = kProducts;
      if (name == "AttentionVarlenFwd") rate.call = kCall;
    }
    ASSERT_EQ(WriteCalibration(path_, calibration), absl::OkStatus());
  }

  config::Job Job(const std::string& sequence) const {
    LoadedJob loaded;
    ConfigErrors errors;
    ParseTextConfig(absl::StrFormat(R"(
          model { transformer { preset: LLAMA layers: %d width: %d heads: %d kv_heads: %d ffn: %d vocabulary: 300 } }
          data { dataset { path: "none" } max_tokens: 64 held_out: 0 } micro_batch { tokens: %d }
          global_batch { sequences: 8 } duration { steps: 1 } parallel { sequence { %s } }
          runtime { compute: FP32 threads_per_rank: 1 calibration: "%s" }
        )",
                                    kLayers, kWidth, kHeads, kKeyHeads, kFfn, kTokens, sequence, path_),
                    "test", loaded.job, errors, loaded.places);
    EXPECT_TRUE(errors.Result().ok()) << errors.Result();
    const auto job = ResolveJob(loaded, kRanks);
    EXPECT_TRUE(job.ok()) << job.status();
    return *job;
  }

  absl::StatusOr<SequenceCostModel> Costs(const std::string& sequence, double peak_now = 0) {
    const config::Job job = Job(sequence);
    const auto world = FakeWorld(0, kRanks);
    const auto mesh = *Mesh::Create(*world, {});
    const CalibrationKey key{"", kRanks, 1, config::RuntimeConfig::FP32};
    const auto spreading = SequencesFor(
        job, key, [&] { return peak_now; }, *mesh, *world, &how_);
    if (!spreading.ok()) return spreading.status();
    return spreading->costs;
  }

  std::string path_, how_;
};

TEST_F(SequenceSetup, WorkIsWhatTheCalibrationSays) {
  const auto costs = Costs("plans: DETERMINISTIC");
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_THAT(how_, HasSubstr("(as calibrated: 8 ranks x 1 thread, FP32, on node)"));
  // Two products of H C (n^2 + n) forward, five backward; six operations a token and parameter of matrices.
  const double attention = 7 * kLayers * kHeads * kHeadSize * kAttention;
  const double layer = kWidth * (2 * kHeads + 2 * kKeyHeads) * kHeadSize + 3 * kWidth * kFfn;
  const double products = 6 * (kLayers * layer + kWidth * 300) * kProducts;
  EXPECT_NEAR(costs->quadratic / attention, 1, 1e-6);
  EXPECT_NEAR(costs->linear / (products + attention), 1, 1e-6);
  EXPECT_NEAR(costs->fixed, kLayers * (kCall + 5 * kLatency), 1e-12);
  EXPECT_EQ(costs->tokens_per_rank, kTokens);
  EXPECT_EQ(costs->longest, 64);

  // Live costs follow the speed that the machine has now.
  const auto slower = Costs("plans: LIVE", kPeak / 2);
  ASSERT_TRUE(slower.ok()) << slower.status();
  EXPECT_NEAR(slower->quadratic / costs->quadratic, 2, 1e-6);
  EXPECT_NEAR(slower->linear / costs->linear, 2, 1e-6);
}

TEST_F(SequenceSetup, ExchangesAreThoseOfDegreeAndMode) {
  struct Row {
    const char* mode;
    double bytes[3];    // that leave a rank, of a layer and token, at degrees 2, 4 and 8
    double in_turn[3];  // exchanges of a layer
  };
  // Elements of 4 bytes, heads of 4: 2 (2 x 8 + 2 max(2, u)) 16 (u - 1) / u, of which key heads repeat from degree 4
  // on; in a ring 2 key heads, keys and values, 2 (r - 1) + r times.
  const Row rows[] = {{"AUTO", {320, 576, 896}, {5, 5, 5}},
                      {"ULYSSES", {320, 576, 896}, {5, 5, 5}},
                      {"RING", {64 * 4, 64 * 10, 64 * 22}, {3, 7, 15}}};
  for (const Row& row : rows) {
    SCOPED_TRACE(row.mode);
    const auto costs = Costs(absl::StrFormat("plans: DETERMINISTIC mode: %s", row.mode));
    ASSERT_TRUE(costs.ok()) << costs.status();
    EXPECT_EQ(costs->LargestDegree(kRanks), 8);
    EXPECT_DOUBLE_EQ(costs->exchange_bytes_per_token, kLayers * row.bytes[2]);
    EXPECT_NEAR(costs->fixed, kLayers * (kCall + row.in_turn[0] * kLatency), 1e-12);
    ASSERT_EQ(costs->bandwidth.size(), 3u);
    for (int k = 0; k < 3; ++k) {
      const int degree = 2 << k;
      // Of a full group; an all-to-all's time is of what it takes, and an eighth of that does not leave.
      const double seconds = (degree * costs->Seconds(1, degree) - costs->Seconds(1, 1)) * kTokens;
      const double wait = kLayers * (row.in_turn[k] - row.in_turn[0]) * kLatency;
      EXPECT_NEAR(seconds, kLayers * row.bytes[k] * kTokens * kPerByte * 8 / 7 + wait, 1e-12) << "degree " << degree;
    }
  }
}

TEST_F(SequenceSetup, ExchangesOfOneRankAreFree) {
  const auto costs = Costs("plans: DETERMINISTIC max_degree: 1");
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_TRUE(costs->bandwidth.empty());
  EXPECT_NEAR(costs->fixed, kLayers * kCall, 1e-12);
}

}  // namespace
}  // namespace shoal
