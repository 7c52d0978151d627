#include "parallel/checkpoint/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "comm/world.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using testing::HasSubstr;

constexpr int64_t kRows = 37, kColumns = 5, kSize = kRows * kColumns;

// One tensor cut into runs over ranks, and a few values.
struct State : Stateful {
  State(int rank, int ranks, float base) {
    begin = kSize * rank / ranks;
    values = Tensor::Zeros({kSize * (rank + 1) / ranks - begin}, DType::kF32);
    for (int64_t i = 0; i < values.size(); ++i) values.data<float>()[i] = base + static_cast<float>(begin + i);
    shared = Tensor::Zeros({3}, DType::kF32);
    shared.data<float>()[1] = base;
    count = static_cast<int64_t>(base);
    real = static_cast<double>(base) / 3;
    blob = std::string("a\0b", 3);
  }
  void VisitState(StateVisitor& v) override {
    v.TrueShape("w", {kRows, kColumns});
    v.Shard("w", values, {{kSize}, {begin}, {values.size()}});
    v.Shard("replicated", shared, {{3}, {0}, {3}});
    v.Scalar("count", count);
    v.Scalar("real", real);
    v.Blob("blob", blob);
  }
  int64_t begin;
  Tensor values, shared;
  int64_t count;
  double real;
  std::string blob;
};

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/checkpoint_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  absl::Status Save(int ranks, int64_t step, float base, CheckpointStore::Best best = CheckpointStore::Best::kNo,
                    FileSystem* files = nullptr) {
    return RunThreadRanks(ranks, {}, [&](int rank, Communicator& world) {
      State state(rank, ranks, base);
      Stateful* all[] = {&state};
      CheckpointStore store({.dir = dir_, .keep = 2, .files = files}, world);
      SHOAL_RETURN_IF_ERROR(store.Save(step, all, best));
      return store.Wait();
    });
  }
  // Loads on `ranks` ranks; checks every value; returns the step.
  absl::StatusOr<int64_t> Load(int ranks, float base, std::vector<std::string>* warnings = nullptr) {
    int64_t step = -1;
    const absl::Status status = RunThreadRanks(ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
      State state(rank, ranks, -1000), want(rank, ranks, base);
      state.blob.clear();
      Stateful* all[] = {&state};
      CheckpointStore store({.dir = dir_}, world);
      SHOAL_ASSIGN_OR_RETURN(const int64_t loaded, store.LoadNewest(all));
      EXPECT_EQ(0, std::memcmp(state.values.raw(), want.values.raw(), want.values.bytes()));
      EXPECT_EQ(state.shared.data<float>()[1], base);
      EXPECT_EQ(state.count, want.count);
      EXPECT_EQ(state.real, want.real);
      EXPECT_EQ(state.blob, want.blob);
      if (rank == 0) step = loaded;
      if (rank == 0 && warnings != nullptr) *warnings = store.warnings();
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return step;
  }
  std::string dir_;
};

TEST_F(CheckpointTest, ReshardsFromAnyToAnyNumberOfRanks) {
  for (int from = 1; from <= 4; ++from) {
    ASSERT_TRUE(Save(from, from, static_cast<float>(from)).ok());
    for (int to = 1; to <= 4; ++to) {
      const auto step = Load(to, static_cast<float>(from));
      ASSERT_TRUE(step.ok()) << step.status();
      EXPECT_EQ(*step, from);
    }
  }
}

TEST_F(CheckpointTest, KeepsTheNewestAndTheBest) {
  ASSERT_TRUE(Save(1, 1, 1, CheckpointStore::Best::kYes).ok());
  for (int step = 2; step <= 5; ++step) ASSERT_TRUE(Save(1, step, static_cast<float>(step)).ok());
  EXPECT_THAT(ListCheckpoints(PosixFiles(), dir_),
              testing::ElementsAre("step-00000001", "step-00000004", "step-00000005"));
  EXPECT_EQ(*FindCheckpoint(dir_), dir_ + "/step-00000001");
}

TEST_F(CheckpointTest, ADamagedOneIsNamedAndTheOneBeforeTaken) {
  ASSERT_TRUE(Save(2, 1, 1).ok());
  ASSERT_TRUE(Save(2, 2, 2).ok());
  const std::string newest = dir_ + "/step-00000002/";
  for (const std::string name : {"rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"}) {
    const std::string whole = *PosixFiles().Read(newest + name);
    for (const double place : {0.0, 0.02, 0.3, 0.6, 0.99}) {
      std::string flipped = whole;
      const auto at = static_cast<size_t>(place * static_cast<double>(whole.size() - 1));
      flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
      std::ofstream(newest + name, std::ios::binary) << flipped;
      std::vector<std::string> warnings;
      const auto step = Load(2, 1, &warnings);
      // A flipped blank or letter of JSON may change nothing that counts; then the newest still loads, with its own
      // values.
      if (step.ok()) {
        EXPECT_EQ(*step, 1) << name << " byte " << at;
        ASSERT_EQ(warnings.size(), 1u);
        EXPECT_THAT(warnings[0], HasSubstr("step-00000002"));
      }
    }
    std::ofstream(newest + name, std::ios::binary) << whole.substr(0, whole.size() / 2);
    std::vector<std::string> warnings;
    EXPECT_EQ(*Load(2, 1, &warnings), 1) << "torn " << name;
    std::filesystem::remove(newest + name);
    EXPECT_EQ(*Load(2, 1), 1) << "missing " << name;
    std::ofstream(newest + name, std::ios::binary) << whole;
  }
  EXPECT_EQ(*Load(2, 2), 2);
}

TEST_F(CheckpointTest, AnotherModelIsRefusedByTensorName) {
  ASSERT_TRUE(Save(1, 1, 1).ok());
  struct Other : Stateful {
    Tensor t = Tensor::Zeros({4}, DType::kF32);
    void VisitState(StateVisitor& v) override { v.Shard("another.weight", t, {{4}, {0}, {4}}); }
  } other;
  Stateful* all[] = {&other};
  const auto world = FakeWorld(0, 1);
  const absl::Status status = CheckpointStore::LoadFrom(dir_ + "/step-00000001", all);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor 'another.weight' is not in it"));
}

// Fails the n-th write, as a full disk does.
class FullDisk : public FileSystem {
 public:
  explicit FullDisk(int after) : left_(after) {}
  class File : public WritableFile {
   public:
    File(std::unique_ptr<WritableFile> file, FullDisk& disk) : file_(std::move(file)), disk_(disk) {}
    absl::Status Append(absl::string_view data) override {
      if (disk_.left_-- <= 0) {
        file_->Append(data.substr(0, data.size() / 2)).IgnoreError();
        return EnvironmentError("No space left on device");
      }
      return file_->Append(data);
    }
    absl::Status Sync() override {
      return disk_.left_-- <= 0 ? EnvironmentError("No space left on device") : file_->Sync();
    }
    absl::Status Close() override { return file_->Close(); }

   private:
    std::unique_ptr<WritableFile> file_;
    FullDisk& disk_;
  };
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    SHOAL_ASSIGN_OR_RETURN(auto file, PosixFiles().Create(path));
    return std::unique_ptr<WritableFile>(std::make_unique<File>(std::move(file), *this));
  }
  absl::StatusOr<std::string> Read(const std::string& path) override { return PosixFiles().Read(path); }
  absl::Status Rename(const std::string& a, const std::string& b) override {
    return left_-- <= 0 ? EnvironmentError("rename failed") : PosixFiles().Rename(a, b);
  }
  absl::Status MakeDirs(const std::string& path) override { return PosixFiles().MakeDirs(path); }
  absl::Status RemoveAll(const std::string& path) override { return PosixFiles().RemoveAll(path); }
  absl::Status SyncDir(const std::string& path) override { return PosixFiles().SyncDir(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override { return PosixFiles().List(path); }
  bool Exists(const std::string& path) override { return PosixFiles().Exists(path); }
  int left_;
};

TEST_F(CheckpointTest, AFullDiskAtAnyPointLosesNothing) {
  ASSERT_TRUE(Save(1, 1, 1).ok());
  int failures = 0;
  for (int after = 0; after < 40; ++after) {
    FullDisk disk(after);
    const absl::Status status = Save(1, 2, 2, CheckpointStore::Best::kNo, &disk);
    if (status.ok()) break;
    ++failures;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kEnvironment) << status;
    EXPECT_FALSE(std::filesystem::exists(dir_ + "/step-00000002.tmp"));
    // Either the new one is whole already (only `latest` failed), or the old one is what there is.
    const bool renamed = std::filesystem::exists(dir_ + "/step-00000002");
    const auto step = Load(1, renamed ? 2.0f : 1.0f);
    ASSERT_TRUE(step.ok()) << step.status() << " after " << after;
    std::filesystem::remove_all(dir_ + "/step-00000002");
  }
  EXPECT_GT(failures, 5);
  EXPECT_EQ(*Load(1, 2), 2);
}

TEST_F(CheckpointTest, ToolsReadWholeTensors) {
  ASSERT_TRUE(Save(3, 1, 1).ok());
  const auto reader = CheckpointReader::Open(dir_ + "/step-00000001");
  ASSERT_TRUE(reader.ok());
  const auto w = reader->Read("w");
  ASSERT_TRUE(w.ok()) << w.status();
  EXPECT_EQ(w->shape(), (Shape{kRows, kColumns}));
  EXPECT_EQ(w->data<float>()[kSize - 1], static_cast<float>(kSize));
  EXPECT_THAT(*InspectCheckpoint(dir_), HasSubstr("count = 1"));
  EXPECT_THAT(*DiffCheckpoints(dir_, dir_), HasSubstr("2 of 2 tensors are equal bit for bit"));
  ASSERT_TRUE(ExportWeights(dir_, dir_ + "/w.safetensors", Weights::kAverages).ok());
  EXPECT_EQ((*SafetensorsFile::Open(dir_ + "/w.safetensors"))->entries().at("w").shape, (Shape{kRows, kColumns}));
}

TEST(Safetensors, DamagedHeadersAreNamed) {
  const auto parse = [](const std::string& json, size_t data) {
    const uint64_t n = json.size();
    const std::string file = std::string(reinterpret_cast<const char*>(&n), 8) + json + std::string(data, 0);
    return std::string(ParseSafetensorsHeader({file.data(), file.size()}).status().message());
  };
  EXPECT_EQ(parse(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "");
  EXPECT_THAT(parse(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7), HasSubstr("tensor 'a'"));
  EXPECT_THAT(parse(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
              HasSubstr("needs 12 bytes, its data_offsets give 8"));
  EXPECT_THAT(parse(R"({"a":{"dtype":"X","shape":[2],"data_offsets":[0,8]}})", 8), HasSubstr("dtype X"));
  EXPECT_THAT(parse(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), HasSubstr("no sensible number"));
  EXPECT_THAT(
      parse(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
          12),
      HasSubstr("overlap"));
  EXPECT_THAT(parse("[1]", 0), HasSubstr("no JSON object"));
  EXPECT_THAT(std::string(ParseSafetensorsHeader({"abc", 3}).status().message()), HasSubstr("truncated"));
}

}  // namespace
}  // namespace shoal
