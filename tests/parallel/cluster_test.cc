// Costs derived from a described cluster, against formulas by hand and what FlexSP published.
#include "parallel/cluster.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

config::Cluster Parse(const std::string& text) {
  config::Cluster cluster;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &cluster)) << text;
  return cluster;
}

// GPT-7B on 64 A100-40GB, all costs derived; `more` comes after.
config::Cluster A100(const std::string& more = "") {
  config::Cluster cluster = Parse(R"(
    nodes: 8 ranks_per_node: 8
    model { layers: 32 width: 4096 heads: 64 vocabulary: 50257 }
    memory { gib_per_rank: 40 usable_gib: 28 }
    compute { peak_tflops: 312 }
    links { intra_gb_per_s: 300 inter_gb_per_s_per_node: 50 }
    lengths { max_tokens: 131072 })");
  cluster.MergeFrom(Parse(more));
  return cluster;
}

std::vector<std::string> Problems(const config::Cluster& cluster) {
  std::vector<std::string> problems;
  CheckCluster(cluster, [&](const std::string& field, const std::string& problem) {
    problems.push_back(absl::StrCat(field, " ", problem));
  });
  return problems;
}

TEST(Cluster, ParametersOfKnownModels) {
  EXPECT_NEAR(ParameterCount(A100().model()), 12.0 * 32 * 4096 * 4096 + 2.0 * 50257 * 4096, 1);
  const auto llama = Parse(R"(model { layers: 32 width: 4096 heads: 32 kv_heads: 8 ffn: 14336 gated: true
                                      vocabulary: 128256 })");
  EXPECT_NEAR(ParameterCount(llama.model()) / 8.03e9, 1, 0.001);
  auto tied = A100("model { tied: true learned_positions: 1000 }");
  EXPECT_NEAR(ParameterCount(tied.model()), 12.0 * 32 * 4096 * 4096 + (50257 + 1000) * 4096.0, 1);
  EXPECT_EQ(ParameterCount(A100("model { parameters: 7e9 }").model()), 7e9);
}

TEST(Cluster, ExchangeBytesWithFewerKeyHeads) {
  // FlexSP charges q, k, v and the output in full: 2 MiB a token of 7B.
  EXPECT_EQ(ExchangeBytesPerToken(A100().model(), 8), 2 << 20);
  auto grouped = A100("model { heads: 32 kv_heads: 8 }");
  // 8 of 32 heads up to degree 8: 62.5 %; above it each key head is repeated.
  EXPECT_EQ(ExchangeBytesPerToken(grouped.model(), 8), 0.625 * (2 << 20));
  EXPECT_EQ(ExchangeBytesPerToken(grouped.model(), 2), 0.625 * (2 << 20));
  EXPECT_EQ(ExchangeBytesPerToken(grouped.model(), 16), 0.75 * (2 << 20));
  EXPECT_EQ(ExchangeBytesPerToken(grouped.model(), 32), 2 << 20);
}

TEST(Cluster, HeadsLimitDegrees) {
  const auto limit = [](int heads, int kv_heads) {
    return UlyssesLimit(A100(absl::StrCat("model { heads: ", heads, " kv_heads: ", kv_heads, " }")).model());
  };
  EXPECT_EQ(limit(64, 64), 64);
  EXPECT_EQ(limit(32, 8), 32);
  EXPECT_EQ(limit(40, 8), 8);
  EXPECT_EQ(limit(24, 6), 2);
  EXPECT_EQ(limit(28, 4), 4);
  EXPECT_EQ(limit(7, 1), 1);
  const auto costs = DeriveCosts(A100("model { heads: 16 }"), 64);
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_EQ(costs->model.LargestDegree(64), 16);
}

TEST(Cluster, RingsLiftTheHeadLimitAtAPrice) {
  const auto cluster = A100("model { heads: 16 ring: true }");
  const auto costs = DeriveCosts(cluster, 64);
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_EQ(costs->model.LargestDegree(64), 64);
  // One key head on each of 16 ranks, 4 groups: keys and values of s / 4 tokens pass 3 times each way, their gradients,
  // of 4 bytes, 4 times.
  const double head = 4096.0 / 16;
  EXPECT_DOUBLE_EQ(RingBytesPerToken(cluster.model(), 64, 4) / 64, 32 * (1.0 / 4) * 2 * head * (2 * 3 * 2 + 4 * 4));
  const auto one_head = DeriveCosts(A100("model { heads: 1 ring: true }"), 64);
  ASSERT_TRUE(one_head.ok()) << one_head.status();
  EXPECT_EQ(one_head->model.LargestDegree(64), 64);
  EXPECT_EQ(one_head->model.Check(), absl::OkStatus());
  const double all_to_all = DeriveCosts(A100(), 64)->model.Seconds(1, 64);
  EXPECT_GT(costs->model.Seconds(1, 64), all_to_all * 0.5);
  // The exchange of 16 heads stays within the ring's neighbours: as costly a token and rank as at degree 16, and more.
  EXPECT_GT(64 * costs->model.Seconds(1, 64), 16 * costs->model.Seconds(1, 16));
}

TEST(Cluster, NodeEdgeIsWhereRatesFall) {
  const auto cluster = A100();
  const double rate = 0.75e9;
  EXPECT_DOUBLE_EQ(LinkRate(cluster, 2), 300 * rate);
  EXPECT_DOUBLE_EQ(LinkRate(cluster, 8), 300 * rate);
  EXPECT_DOUBLE_EQ(LinkRate(cluster, 16), 15.0 / 8 * 6.25 * rate);  // 8 of 15 others are in another node
  EXPECT_DOUBLE_EQ(LinkRate(cluster, 64), 63.0 / 56 * 6.25 * rate);
  auto a_rank = A100();
  a_rank.mutable_links()->set_inter_gb_per_s_per_rank(6.25);  // the same
  EXPECT_DOUBLE_EQ(LinkRate(a_rank, 64), LinkRate(cluster, 64));
  auto of_six = A100();
  of_six.set_ranks_per_node(6);  // ranks 4 to 7 are in two nodes
  EXPECT_DOUBLE_EQ(LinkRate(of_six, 2), 300 * rate);
  EXPECT_DOUBLE_EQ(LinkRate(of_six, 4), 3.0 / 2 * 50.0 / 6 * rate);
  EXPECT_DOUBLE_EQ(RingRate(cluster, 8), 300 * rate);
  EXPECT_DOUBLE_EQ(RingRate(cluster, 16), 50 * rate);
  // Published, in bytes of whole buffers over time: 10.33, 5.94 and 4.87 of 1000 MiB/s.
  const auto costs = DeriveCosts(cluster, 64);
  ASSERT_TRUE(costs.ok()) << costs.status();
  const double published[] = {10.33, 5.94, 4.87};
  for (size_t k = 0; k < 3; ++k)
    EXPECT_NEAR(costs->model.bandwidth[3 + k] / (published[k] * 1000 * (1 << 20)), 1, 0.15) << "degree " << (16 << k);
}

TEST(Cluster, WorkIsNearThePublishedConstants) {
  struct Row {
    const char* name;
    int layers, width;
    double quadratic, linear;  // milliseconds, A100
  };
  for (const Row& row : {Row{"7b", 32, 4096, 5.128e-6, 0.18396}, Row{"13b", 40, 5120, 9.285e-6, 0.30602},
                         Row{"30b", 60, 6656, 1.543e-5, 0.80357}}) {
    const auto cluster = A100(absl::StrCat("model { layers: ", row.layers, " width: ", row.width, " }"));
    const auto costs = DeriveCosts(cluster, 64);
    ASSERT_TRUE(costs.ok()) << costs.status();
    EXPECT_NEAR(costs->model.quadratic * 1e3 / row.quadratic, 1, 0.2) << row.name;
    EXPECT_NEAR(costs->model.linear * 1e3 / row.linear, 1, 0.4) << row.name;
  }
  const auto model = A100().model();
  EXPECT_DOUBLE_EQ(FlopsPerSquaredToken(model, 0), 6.0 * 32 * 4096);
  EXPECT_DOUBLE_EQ(FlopsPerToken(model, 0), 6 * (12.0 * 32 * 4096 * 4096 + 50257.0 * 4096));
  EXPECT_DOUBLE_EQ(FlopsPerToken(model, 1) / FlopsPerToken(model, 0), 4.0 / 3);
}

TEST(Cluster, MemoryGivesCapacity) {
  const double parameters = ParameterCount(A100().model()), usable = 28.0 * (1 << 30), activation = 34.0 * 32 * 4096;
  const auto tokens = [&](int zero, double state_bytes) {
    const auto costs = DeriveCosts(A100(absl::StrCat("memory { usable_gib: 28 } states { zero: ", zero, " }")), 64);
    if (!costs.ok()) return int64_t{0};
    EXPECT_DOUBLE_EQ(costs->states, state_bytes * parameters);
    EXPECT_DOUBLE_EQ(costs->activation, activation);
    EXPECT_EQ(costs->model.tokens_per_rank, static_cast<int64_t>((usable - costs->states) / activation));
    return costs->model.tokens_per_rank;
  };
  const int64_t stage_3 = tokens(3, 16.0 / 64), stage_2 = tokens(2, 2 + 14.0 / 64), stage_1 = tokens(1, 4 + 12.0 / 64);
  EXPECT_GT(stage_3, stage_2);
  EXPECT_GT(stage_2, stage_1);
  EXPECT_GT(stage_1, 0);
  EXPECT_EQ(tokens(0, 16), 0);  // does not fit
  const auto status = DeriveCosts(A100("states { zero: 0 }"), 64).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("take a higher ZeRO stage"));
  const auto few = DeriveCosts(A100("model { layers: 100 }"), 8).status();
  EXPECT_THAT(few.message(), HasSubstr("take at least 16 ranks"));
  EXPECT_TRUE(DeriveCosts(A100("model { layers: 100 }"), 16).ok());
}

TEST(Cluster, StagesPayByTheMicroBatchOrByTheStep) {
  const double pass = ParameterCount(A100().model()) * 63 / 64 / (50 * 0.75e9);
  const auto costs = [&](int zero) {
    return *DeriveCosts(A100(absl::StrCat("memory { gib_per_rank: 400 usable_gib: 300 } states { zero: ", zero, " }")),
                        64);
  };
  EXPECT_DOUBLE_EQ(costs(3).model.fixed, pass * 6);
  EXPECT_EQ(costs(3).step, 0);
  EXPECT_DOUBLE_EQ(costs(2).model.fixed, pass * 2);
  EXPECT_DOUBLE_EQ(costs(2).step, pass * 2);
  EXPECT_EQ(costs(1).model.fixed, 0);
  EXPECT_DOUBLE_EQ(costs(1).step, pass * 4);
  EXPECT_DOUBLE_EQ(costs(0).step, pass * 4);
  const auto hidden =
      *DeriveCosts(A100("states { overlap: 0.5 } links { latency_us: 10 } compute { launch_ms: 3 }"), 64);
  EXPECT_DOUBLE_EQ(hidden.traffic, pass * 3);
  EXPECT_DOUBLE_EQ(hidden.latency, 8 * 32 * 10e-6);
  EXPECT_DOUBLE_EQ(hidden.model.fixed, hidden.traffic + 0.003 + hidden.latency);
  const auto given = *DeriveCosts(A100("compute { fixed_ms: 629.4 }"), 64);
  EXPECT_DOUBLE_EQ(given.model.fixed, 0.6294);
}

TEST(Cluster, RanksAreWholeNodes) {
  EXPECT_THAT(DeriveCosts(A100(), 12).status().message(), HasSubstr("nearest valid: 8 or 16"));
  EXPECT_THAT(DeriveCosts(A100(), 4).status().message(), HasSubstr("nearest valid: 8"));
  EXPECT_THAT(DeriveCosts(A100(), 1 << 30).status().message(), HasSubstr("at most 1048576"));
  const auto many = DeriveCosts(A100(), 4096);
  ASSERT_TRUE(many.ok()) << many.status();
  EXPECT_EQ(many->model.LargestDegree(4096), 64);
}

TEST(Cluster, ChecksNameEveryFieldThatIsWrong) {
  EXPECT_THAT(Problems(A100()), testing::IsEmpty());
  EXPECT_THAT(
      Problems(A100("links { efficiency: 0 latency_us: -1 } states { zero: 4 overlap: 2 }")),
      UnorderedElementsAre("links.efficiency is 0; it lies in (0, 1]", "links.latency_us is -1; it is 0 or more",
                           "states.zero is 4; stages are 0, 1, 2 and 3", "states.overlap is 2; it lies in [0, 1]"));
  EXPECT_THAT(Problems(A100("compute { linear_ms: 1 }")),
              UnorderedElementsAre(HasSubstr("compute.peak_tflops stands beside"),
                                   "compute.quadratic_ms is missing; for example 5e-6"));
  EXPECT_THAT(Problems(A100("links { all_to_all { degree: 2 gb_per_s: 5 } all_to_all { degree: 8 gb_per_s: -5 } }")),
              UnorderedElementsAre(HasSubstr("links.all_to_all[1].degree is 8; degrees are 2, 4, 8"),
                                   "links.all_to_all[1].gb_per_s is -5; it is above 0"));
  EXPECT_THAT(Problems(A100("model { kv_heads: 5 } memory { usable_gib: 41 }")),
              UnorderedElementsAre("model.kv_heads is 5; it divides heads, 64",
                                   "memory.usable_gib is 41, more than gib_per_rank, 40"));
  EXPECT_THAT(Problems(config::Cluster()), testing::SizeIs(testing::Ge(10)));
}

}  // namespace
}  // namespace shoal
