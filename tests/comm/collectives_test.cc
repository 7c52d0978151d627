#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "comm/clock.h"
#include "comm/flight_recorder.h"
#include "comm/world.h"
#include "tests/comm/collective_table.h"

namespace shoal {
namespace {

using testing::HasSubstr;

class Collectives : public testing::TestWithParam<int> {};

TEST_P(Collectives, TableOnThreadRanks) {
  CommOptions options;
  options.segment_bytes = 512;
  const absl::Status status = RunThreadRanks(GetParam(), options, [](int, Communicator& world) {
    return RunCollectiveTable(world, {0, 1, 2, 7, 127, 3001});
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(Collectives, TableWithCrossRankCheck) {
  CommOptions options;
  options.check = CommOptions::Check::kOn;
  const absl::Status status = RunThreadRanks(GetParam(), options, [](int, Communicator& world) {
    return RunCollectiveTable(world, {3, 500});
  });
  EXPECT_TRUE(status.ok()) << status;
}

INSTANTIATE_TEST_SUITE_P(Ranks, Collectives, testing::Range(1, 9));

// Threads of one process share a clock, so the offsets are the method's error.
TEST(Clock, OffsetsOfThreadRanksAreSmall) {
  const absl::Status status = RunThreadRanks(3, {}, [](int rank, Communicator& world) -> absl::Status {
    const auto offset = ClockOffset(world);
    if (!offset.ok()) return offset.status();
    EXPECT_LT(std::abs(*offset), 0.02) << "rank " << rank;
    EXPECT_TRUE(rank != 0 || *offset == 0);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CommSpans, EveryCollectiveReportsItsTimeAndTag) {
  class Sink : public SpanSink {
   public:
    void Add(const Span& span) override {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.push_back(absl::StrCat(span.name, " ", span.note, " ", span.bytes));
      EXPECT_EQ(span.track, Span::Track::kComm);
      EXPECT_GE(span.seconds, 0);
    }
    std::mutex mutex;
    std::vector<std::string> seen;
  };
  Sink sinks[2];
  const absl::Status status = RunThreadRanks(2, {}, [&](int rank, Communicator& world) -> absl::Status {
    world.set_spans(&sinks[rank]);
    const Tensor x = Tensor::Zeros({8}, DType::kF32);
    absl::Status done = world.AllReduce(x, ReduceOp::kSum, {.tag = "bucket"})->Wait();
    world.set_spans(nullptr);
    if (done.ok()) done = world.Barrier({.tag = "unseen"})->Wait();
    return done;
  });
  EXPECT_TRUE(status.ok()) << status;
  for (const Sink& sink : sinks) EXPECT_THAT(sink.seen, testing::ElementsAre("all_reduce bucket 32"));
}

// A link of 20 MB/s each way carries an all-reduce of 1 MB between 4 ranks, 0.75 MB there and 0.75 MB back, in 75 ms.
TEST(ThreadLinks, CarryWhatTheirRateAllows) {
  CommOptions options;
  options.thread_link_bytes_per_second = 20e6;
  const absl::Status status = RunThreadRanks(4, options, [](int, Communicator& world) -> absl::Status {
    const Tensor x = TableTensor(world.rank(), 250'000, DType::kF32);
    SHOAL_RETURN_IF_ERROR(world.Barrier({.tag = "start"})->Wait());
    const double start = SteadySeconds();
    SHOAL_RETURN_IF_ERROR(world.AllReduce(x, ReduceOp::kSum, {.tag = "all"})->Wait());
    const double seconds = SteadySeconds() - start;
    EXPECT_GT(seconds, 0.9 * 0.075);
    double want = 0;
    for (int r = 0; r < 4; ++r) want += TableValue(r, 249'999, DType::kF32);
    EXPECT_EQ(Get(x, 249'999), want);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CollectiveFaults, ALateRankIsNamedAndEveryoneFails) {
  CommOptions options;
  options.deadline = absl::Milliseconds(200);
  options.flight_dir = testing::TempDir() + "/flight";
  std::filesystem::create_directories(options.flight_dir);
  std::vector<absl::Status> statuses(3);
  const absl::Status first = RunThreadRanks(3, options, [&](int rank, Communicator& world) {
    const Tensor x = Tensor::Zeros({100}, DType::kF32);
    SHOAL_RETURN_IF_ERROR(world.AllReduce(x, ReduceOp::kSum, {.tag = "first"})->Wait());
    if (rank == 2) {
      while (world.health().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } else {
      statuses[rank] = world.AllReduce(x, ReduceOp::kSum, {.tag = "grad bucket 4"})->Wait();
    }
    EXPECT_FALSE(world.Barrier({.tag = "after"})->Wait().ok()) << "a poisoned communicator fails fast";
    return statuses[rank];
  });
  EXPECT_EQ(first.code(), absl::StatusCode::kDeadlineExceeded) << first;
  EXPECT_THAT(std::string(first.message()), HasSubstr("all_reduce 'grad bucket 4' (#2 of communicator world)"));
  EXPECT_THAT(std::string(first.message()), HasSubstr("rank 2 never entered"));
  const auto why = WhyHang(options.flight_dir);
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_THAT(*why, HasSubstr("rank 0: all_reduce 'grad bucket 4', 400 bytes, failed"));
}

TEST(CollectiveFaults, AFailingRankWakesItsPeers) {
  const absl::Status status = RunThreadRanks(4, {}, [](int rank, Communicator& world) -> absl::Status {
    if (rank == 3) return absl::DataLossError("its disk is gone");
    const Tensor x = Tensor::Zeros({100}, DType::kF32);
    const absl::Status got = world.AllReduce(x, ReduceOp::kSum, {.tag = "x"})->Wait();
    EXPECT_THAT(std::string(got.message()), HasSubstr("rank 3 failed: its disk is gone"));
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

TEST(CollectiveFaults, ADifferentCallIsNamedOnBothSides) {
  CommOptions options;
  options.check = CommOptions::Check::kOn;
  const absl::Status status = RunThreadRanks(2, options, [](int rank, Communicator& world) {
    const Tensor x = Tensor::Zeros({rank == 0 ? 10 : 11}, DType::kF32);
    return world.AllReduce(x, ReduceOp::kSum, {.tag = rank == 0 ? "a" : "b"})->Wait();
  });
  EXPECT_THAT(std::string(status.message()), HasSubstr("#1 all_reduce 'a' f32 x 10"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("#1 all_reduce 'b' f32 x 11"));
}

TEST(CollectiveFaults, UnequalValuesAreShownWithTheirRanks) {
  const absl::Status status = RunThreadRanks(3, {}, [](int rank, Communicator& world) {
    return CheckEqualOnAllRanks(world, "build", rank == 1 ? "old" : "new", {.tag = "build"});
  });
  EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 0, 2: new"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1: old"));
}

TEST(FakeWorld, CompletesAtOnceWithOwnContribution) {
  const auto world = FakeWorld(1, 4);
  const Tensor in = TableTensor(1, 8, DType::kF32), out = Tensor::Zeros({2}, DType::kF32);
  EXPECT_TRUE(world->ReduceScatter(in, out, ReduceOp::kSum, {.tag = "x"})->Done());
  EXPECT_EQ(out.data<float>()[0], in.data<float>()[2]);
}

}  // namespace
}  // namespace shoal
