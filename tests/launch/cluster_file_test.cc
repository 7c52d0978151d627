// Cluster files: those of the examples load and give what FlexSP published; errors come at once, each with its place.
#include "launch/cluster_file.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "launch/commands/plan_lengths.h"
#include "parallel/cluster.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

constexpr char kExamples[] = "examples/flexsp_paper/";

TEST(ClusterFile, EveryExampleLoadsWithItsLengths) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kExamples)) {
    if (entry.path().extension() != ".textproto") continue;
    ++files;
    const auto cluster = LoadCluster(entry.path(), {});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    EXPECT_TRUE(cluster->has_source()) << entry.path() << " says where its numbers come from";
    const auto costs = DeriveCosts(*cluster, cluster->nodes() * cluster->ranks_per_node());
    ASSERT_TRUE(costs.ok()) << entry.path() << ": " << costs.status();
    PlanLengthsArgs lengths;
    lengths.file = cluster->lengths().path();
    lengths.batches = 1;
    EXPECT_TRUE(ReadLengths(lengths, costs->model.longest).ok()) << entry.path();
  }
  EXPECT_EQ(files, 9);
}

TEST(ClusterFile, SetUpsOfThePaperAreThePublishedConstants) {
  for (const char* name : {"7b", "13b", "30b"}) {
    for (const int kilo : {192, 384}) {
      const auto cluster = LoadCluster(absl::StrCat(kExamples, name, "_", kilo, "k.textproto"), {});
      ASSERT_TRUE(cluster.ok()) << cluster.status();
      const auto costs = DeriveCosts(*cluster, 64);
      ASSERT_TRUE(costs.ok()) << costs.status();
      const auto published = PublishedCostModel(name, 64, kilo * 1024);
      ASSERT_TRUE(published.ok()) << published.status();
      const SequenceCostModel& model = costs->model;
      EXPECT_DOUBLE_EQ(model.quadratic, published->quadratic);
      EXPECT_DOUBLE_EQ(model.linear, published->linear);
      EXPECT_DOUBLE_EQ(model.fixed, published->fixed);
      EXPECT_DOUBLE_EQ(model.exchange_bytes_per_token, published->exchange_bytes_per_token);
      ASSERT_EQ(model.bandwidth.size(), published->bandwidth.size());
      for (size_t k = 0; k < model.bandwidth.size(); ++k)
        EXPECT_DOUBLE_EQ(model.bandwidth[k], published->bandwidth[k]) << k;
      EXPECT_EQ(model.tokens_per_rank, published->tokens_per_rank) << name << " " << kilo;
      EXPECT_EQ(model.longest, published->longest);
      EXPECT_EQ(model.max_degree, published->max_degree);
    }
  }
}

TEST(ClusterFile, AnExampleAsItIsRead) {
  const auto cluster = LoadCluster(absl::StrCat(kExamples, "llama_8b_h100.textproto"), {});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  std::string text;
  google::protobuf::TextFormat::PrintToString(*cluster, &text);
  std::ifstream file("tests/launch/cluster.golden");
  const std::string golden((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_EQ(text, golden) << "if this is meant, tests/launch/cluster.golden becomes:\n" << text;
}

TEST(ClusterFile, AllErrorsAtOnceWithTheirPlaces) {
  const std::string path = testing::TempDir() + "/cluster.textproto";
  std::ofstream(path) << "nodes: 2\nranks_per_node: 4\nlinks {\n  intra_gb_per_s: 300\n  inter_gb_per_s: 50\n}\n"
                         "model { layerz: 2 }\n";
  const auto unknown = LoadCluster(path, {}).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.message(), HasSubstr(path + ":5:3: unknown field 'links.inter_gb_per_s'"));
  EXPECT_THAT(unknown.message(), HasSubstr(path + ":7:9: unknown field 'model.layerz'; did you mean 'layers'?"));

  const std::vector<std::string> sets = {"links.inter_gb_per_s_per_node=-50"};
  std::ofstream(path) << "nodes: 2\nranks_per_node: 4\nlinks {\n  intra_gb_per_s: -300\n  all_to_all {\n"
                         "    degree: 2\n    gb_per_s: 0\n  }\n}\nlengths {\n}\n";
  const auto numbers = LoadCluster(path, sets).status();
  EXPECT_THAT(numbers.message(), HasSubstr(path + ":4:3: links.intra_gb_per_s is -300; it is above 0"));
  EXPECT_THAT(numbers.message(), HasSubstr(path + ":7:5: links.all_to_all[0].gb_per_s is 0; it is above 0"));
  EXPECT_THAT(numbers.message(), HasSubstr("--set links.inter_gb_per_s_per_node=-50: links.inter_gb_per_s_per_node is "
                                           "-50; it is above 0"));
  EXPECT_THAT(numbers.message(), HasSubstr(path + ":10:1: lengths.max_tokens is missing"));
  EXPECT_THAT(numbers.message(), HasSubstr(path + ": model.layers is missing"));
}

TEST(ClusterFile, PathsOfLengthsAreRelativeToTheFile) {
  const std::vector<std::string> set = {"lengths.path=here"};
  const std::string file = absl::StrCat(kExamples, "7b_192k.textproto");
  EXPECT_EQ(LoadCluster(file, {})->lengths().path(), absl::StrCat(kExamples, "wikipedia_lengths.csv"));
  EXPECT_EQ(LoadCluster(file, set)->lengths().path(), "here");
  EXPECT_THAT(LoadCluster("none.textproto", {}).status().message(), HasSubstr("cluster file"));
}

}  // namespace
}  // namespace shoal
