#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "runtime/base/file_system.h"
#include "runtime/base/regex.h"
#include "runtime/data/dataset_builder.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/loader.h"
#include "runtime/data/sampler.h"
#include "runtime/data/training_data.h"

namespace shoal {
namespace {

using testing::HasSubstr;

class DataTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
  }
  std::string Slurp(const std::string& name) const { return *PosixFiles().Read(Path(name)); }
  // Documents of the given lengths; token i of document d is (17 d + i) % 251.
  std::string MakeDataset(const std::string& name, const std::vector<int>& lengths) const {
    auto writer = *DatasetWriter::Create(PosixFiles(), Path(name), 256);
    for (size_t d = 0; d < lengths.size(); ++d) {
      std::vector<int32_t> tokens(lengths[d]);
      for (int i = 0; i < lengths[d]; ++i) tokens[i] = static_cast<int32_t>((17 * d + i) % 251);
      EXPECT_TRUE(writer->AddDocument(tokens).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    return Path(name);
  }
  config::DataConfig Config(const std::string& path, int max_tokens, double held_out = 0) const {
    config::DataConfig c;
    c.add_dataset()->set_path(path);
    c.set_max_tokens(max_tokens);
    c.set_held_out(held_out);
    return c;
  }
  std::string folder_;
};

TEST_F(DataTest, WriterAndReaderAgreeForEveryTokenWidth) {
  for (const int64_t vocabulary : {256, 50257, 128256}) {
    auto writer = *DatasetWriter::Create(PosixFiles(), Path("d"), vocabulary);
    const std::vector<int32_t> a = {0, static_cast<int32_t>(vocabulary - 1), 7}, b = {5};
    ASSERT_TRUE(writer->AddDocument(a).ok());
    ASSERT_TRUE(writer->AddDocument(b).ok());
    ASSERT_TRUE(writer->Finish().ok());
    const auto dataset = TokenDataset::Open(Path("d"));
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ((*dataset)->documents(), 2);
    std::vector<int32_t> read(3);
    (*dataset)->Read(0, 0, absl::MakeSpan(read));
    EXPECT_EQ(read, a);
    EXPECT_TRUE((*dataset)->CheckTokens(vocabulary).ok());
    EXPECT_THAT(std::string((*dataset)->CheckTokens(vocabulary - 1).message()),
                HasSubstr(vocabulary == 256 ? "document 0, token 1 is 255" : "document 0, token 1"));
  }
}

TEST_F(DataTest, DamagedIndexedDatasetsAreNamed) {
  MakeDataset("d", {5, 9, 1});
  const std::string idx = Slurp("d.idx"), bin = Slurp("d.bin");
  const auto opened = [&](const std::string& bad_idx, const std::string& bad_bin) {
    Write("d.idx", bad_idx);
    Write("d.bin", bad_bin);
    return std::string(TokenDataset::Open(Path("d")).status().ToString());
  };
  EXPECT_EQ(opened(idx, bin), "OK");
  EXPECT_THAT(opened(idx.substr(0, 20), bin), HasSubstr("truncated"));
  EXPECT_THAT(opened(idx.substr(0, idx.size() - 3), bin), HasSubstr("truncated"));
  EXPECT_THAT(opened("X" + idx.substr(1), bin), HasSubstr("MMIDIDX"));
  EXPECT_THAT(opened(idx, bin.substr(1)), HasSubstr("the .bin beside it has 14 bytes"));
  EXPECT_THAT(opened(idx, ""), HasSubstr("0 bytes"));
  for (const int at : {9, 17, 18, 26, 34, 46, 60}) {
    std::string flipped = idx;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x40);
    EXPECT_THAT(opened(flipped, bin), HasSubstr("DATA_LOSS")) << "byte " << at;
  }
  std::filesystem::remove(Path("d.bin"));
  EXPECT_THAT(std::string(TokenDataset::Open(Path("d")).status().message()),
              HasSubstr("its .idx is there, its .bin is not"));
  EXPECT_THAT(std::string(TokenDataset::Open(Path("none")).status().message()), HasSubstr("shoal data build"));
}

TEST_F(DataTest, ReadsLlmcShards) {
  std::vector<int32_t> header(256);
  header[0] = 20240520, header[1] = 1, header[2] = 6;
  const std::vector<uint16_t> tokens = {50256, 1, 2, 50256, 3, 4};
  std::string file(reinterpret_cast<const char*>(header.data()), 1024);
  file.append(reinterpret_cast<const char*>(tokens.data()), 12);
  Write("s.bin", file);
  const auto dataset = TokenDataset::Open(Path("s.bin"));
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ((*dataset)->documents(), 2);
  EXPECT_EQ((*dataset)->length(1), 3);
  Write("s.bin", file.substr(0, file.size() - 1));
  EXPECT_THAT(std::string(TokenDataset::Open(Path("s.bin")).status().message()), HasSubstr("counts 6 tokens"));
}

TEST_F(DataTest, BuildsFromFilesFoldersAndJsonLines) {
  std::filesystem::create_directories(Path("in/sub"));
  Write("in/a.txt", "hello");
  Write("in/sub/b.txt", "world!");
  Write("in/empty.txt", "");
  Write("c.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"two\\n2\", \"x\": 1}\n");
  gzFile gz = gzopen(Path("d.jsonl.gz").c_str(), "wb");
  gzputs(gz, "{\"text\": \"zipped\"}\n");
  gzclose(gz);
  const auto report = BuildDataset(PosixFiles(), {Path("in"), Path("c.jsonl"), Path("d.jsonl.gz")}, Path("out/data"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->documents, 5);
  EXPECT_EQ(report->empty, 1);
  EXPECT_EQ(report->tokens, 5 + 6 + 3 + 5 + 6);
  Write("bad.jsonl", "{\"text\": \"fine\"}\n{\"txt\": 1}\n");
  const auto bad = BuildDataset(PosixFiles(), {Path("bad.jsonl")}, Path("out/bad"));
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("bad.jsonl: line 2: no string \"text\""));
  EXPECT_FALSE(std::filesystem::exists(Path("out/bad.bin.tmp")));
}

TEST_F(DataTest, SplitsFilesAtLinesThatMatch) {
  Write("a.pod", "=head1 A\none\n\n=head2 B\n=head1 C\nlast =head1");
  Write("b.pod", "before\n=head1 D");
  const auto split = Regex::Compile("^=head1");
  ASSERT_TRUE(split.ok());
  const auto report = BuildDataset(PosixFiles(), {Path("a.pod"), Path("b.pod")}, Path("split"), *split);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lengths, testing::ElementsAre(7, 8, 20, 23));
}

TEST_F(DataTest, OverLongDocumentsAreSplitTruncatedDroppedOrRefused) {
  auto config = Config(MakeDataset("d", {1, 5, 12, 4}), 4);
  auto data = *TrainingData::Open(config, 256);
  // 5 tokens: 4 predictions; 12 tokens: 11 = 4 + 4 + 3; 4 tokens: 3; 1 token: none.
  EXPECT_EQ(data->epoch_samples(), 5);
  EXPECT_EQ(data->epoch_tokens(), 4 + 11 + 3);
  EXPECT_THAT(data->Summary(), HasSubstr("1 split, 1 shorter than 2 tokens"));
  const Sample second = data->train(0)[2];
  std::vector<int32_t> tokens(4), labels(4);
  data->Read(second, tokens.data(), labels.data());
  EXPECT_THAT(tokens, testing::ElementsAre(38, 39, 40, 41));
  EXPECT_THAT(labels, testing::ElementsAre(39, 40, 41, 42));
  config.set_over_long(config::DataConfig::TRUNCATE);
  EXPECT_EQ((*TrainingData::Open(config, 256))->epoch_tokens(), 4 + 4 + 3);
  config.set_over_long(config::DataConfig::DROP);
  EXPECT_EQ((*TrainingData::Open(config, 256))->epoch_tokens(), 4 + 3);
  config.set_over_long(config::DataConfig::ERROR);
  EXPECT_THAT(std::string(TrainingData::Open(config, 256).status().message()),
              HasSubstr("document 2 has 11 predictions"));
}

TEST_F(DataTest, HeldOutDocumentsAreWholeAndOutsideTraining) {
  const std::string path = MakeDataset("d", std::vector<int>(200, 30));
  const auto data = *TrainingData::Open(Config(path, 8, 0.1), 256);
  std::set<int64_t> held, trained;
  for (const Sample& s : data->held_out()) held.insert(s.document);
  for (const Sample& s : data->train(0)) trained.insert(s.document);
  EXPECT_EQ(held.size() + trained.size(), 200u);
  EXPECT_GT(held.size(), 5u);
  for (int64_t d : held) EXPECT_EQ(trained.count(d), 0u);
  EXPECT_EQ((*TrainingData::Open(Config(MakeDataset("two", {9, 9}), 8, 0.001), 256))->held_out().size(), 1u);
}

TEST_F(DataTest, PermutationIsOne) {
  for (const int64_t n : {1, 2, 3, 17, 1000}) {
    std::set<int64_t> seen;
    const Permutation p(3, 5, n);
    for (int64_t i = 0; i < n; ++i) seen.insert(p(i));
    EXPECT_EQ(static_cast<int64_t>(seen.size()), n);
    EXPECT_EQ(*seen.rbegin(), n - 1);
  }
}

TEST_F(DataTest, BlendsFollowTheirWeights) {
  config::DataConfig config = Config(MakeDataset("a", std::vector<int>(10, 5)), 8);
  config.mutable_dataset(0)->set_weight(3);
  config.add_dataset()->set_path(MakeDataset("b", std::vector<int>(50, 5)));
  const auto data = *TrainingData::Open(config, 256);
  const Sampler sampler(*data, 1);
  int first = 0;
  for (int i = 0; i < 4096; ++i) first += sampler.At(i).dataset == 0;
  EXPECT_EQ(first, 3072);
}

TEST_F(DataTest, AnyNumberOfRanksSeesTheSameBatches) {
  const auto data = *TrainingData::Open(Config(MakeDataset("d", {3, 40, 7, 22, 9, 30, 2, 15, 18, 5}), 16), 256);
  config::Size global;
  global.set_tokens(64);
  config::Size micro;
  micro.set_tokens(20);
  using Sequence = std::pair<int64_t, std::vector<int32_t>>;
  std::vector<std::set<Sequence>> want;
  for (const int ranks : {1, 2, 3, 5}) {
    std::vector<std::set<Sequence>> got(6);
    std::vector<size_t> micro_count;
    for (int rank = 0; rank < ranks; ++rank) {
      auto loader = *Loader::Create(
          *data, {.global_batch = global, .micro_batch = micro, .seed = 9, .rank = rank, .ranks = ranks}, 0);
      for (int step = 0; step < 6; ++step) {
        const StepBatch batch = loader->Next(64);
        EXPECT_LE(batch.global_tokens, 64);
        if (rank == 0) micro_count.push_back(batch.micro.size());
        EXPECT_EQ(batch.micro.size(), micro_count[step]) << "ranks differ in their number of micro-batches";
        for (const MicroBatch& m : batch.micro) {
          EXPECT_LE(m.tokens.size(), 20u);
          for (size_t s = 0; s + 1 < m.cu_seqlens.size(); ++s) {
            got[step].insert({m.sample_ids[s], std::vector<int32_t>(m.tokens.begin() + m.cu_seqlens[s],
                                                                    m.tokens.begin() + m.cu_seqlens[s + 1])});
            EXPECT_EQ(m.positions[m.cu_seqlens[s]], 0);
          }
        }
      }
    }
    if (want.empty()) want = got;
    EXPECT_EQ(got, want) << ranks << " ranks";
  }
}

TEST_F(DataTest, ALoaderStartsAnywhere) {
  const auto data = *TrainingData::Open(Config(MakeDataset("d", std::vector<int>(37, 12)), 16), 256);
  LoaderOptions options;
  options.global_batch.set_sequences(5);
  auto whole = *Loader::Create(*data, options, 0);
  StepBatch third;
  for (int i = 0; i < 3; ++i) third = whole->Next(5);
  const StepBatch resumed = (*Loader::Create(*data, options, 10))->Next(5);
  EXPECT_EQ(resumed.micro[0].tokens, third.micro[0].tokens);
  EXPECT_EQ(resumed.micro[0].sample_ids, third.micro[0].sample_ids);
}

TEST_F(DataTest, ABatchOfAnotherSizeGoesOnWhereTheLastEnded) {
  const auto data = *TrainingData::Open(Config(MakeDataset("d", std::vector<int>(37, 12)), 16), 256);
  for (const bool tokens : {false, true}) {
    LoaderOptions options;
    tokens ? options.global_batch.set_tokens(5 * 11) : options.global_batch.set_sequences(5);
    options.prefetch_steps = 2;
    auto loader = *Loader::Create(*data, options, 3);
    int64_t at = 3;
    for (const int64_t sequences : {5, 5, 9, 9, 9, 2, 20, 5}) {
      const StepBatch batch = loader->Next(tokens ? sequences * 11 : sequences);
      EXPECT_EQ(batch.first_position, at);
      at += sequences;
      EXPECT_EQ(batch.next_position, at);
      EXPECT_EQ(static_cast<int64_t>(batch.lengths.size()), sequences);
    }
  }
}

TEST_F(DataTest, ShareIsBalancedAndWithinLimits) {
  std::vector<int32_t> lengths;
  for (int i = 0; i < 97; ++i) lengths.push_back(1 + (i * 37) % 100);
  config::Size limit;
  limit.set_tokens(300);
  for (const int ranks : {1, 2, 4, 7}) {
    const auto share = ShareBatch(lengths, ranks, limit);
    std::set<int> seen;
    int64_t least = 1 << 30, most = 0;
    for (const auto& rank : share) {
      int64_t total = 0;
      for (const auto& micro : rank) {
        int64_t tokens = 0;
        for (int i : micro) {
          tokens += lengths[i];
          EXPECT_TRUE(seen.insert(i).second);
        }
        EXPECT_LE(tokens, 300);
        total += tokens;
      }
      least = std::min(least, total), most = std::max(most, total);
    }
    EXPECT_EQ(seen.size(), lengths.size());
    EXPECT_LE(most - least, 100) << ranks;
  }
}

TEST_F(DataTest, HeldOutBatchesAreTheSameForAnyNumberOfRanks) {
  const auto data = *TrainingData::Open(Config(MakeDataset("d", std::vector<int>(60, 21)), 8, 0.4), 256);
  std::vector<std::vector<int32_t>> whole;
  for (const auto& m : HeldOutBatches(*data, 200, 32, 0, 1)) whole.push_back(m.tokens);
  ASSERT_GT(whole.size(), 3u);
  for (size_t i = 0; i < whole.size(); ++i)
    EXPECT_EQ(HeldOutBatches(*data, 200, 32, static_cast<int>(i % 3), 3)[i / 3].tokens, whole[i]);
}

}  // namespace
}  // namespace shoal
