// Collectives between streams: behind the event that they are given, before what waits on their Work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "comm/flight_recorder.h"
#include "comm/world.h"
#include "tests/comm/collective_table.h"
#include "tests/comm/streamed_communicator.h"

namespace shoal {
namespace {

using testing::HasSubstr;

std::unique_ptr<Device> DelayedDevice(uint64_t seed) {
  return CpuDevice(
      {.streams = CpuDeviceOptions::Streams::kAsynchronous, .longest_delay = absl::Microseconds(200), .seed = seed});
}

class StreamedCollectives : public testing::TestWithParam<int> {};

TEST_P(StreamedCollectives, TableBetweenDelayedStreams) {
  CommOptions options;
  options.segment_bytes = 512;
  options.deadline = absl::Minutes(1);
  const auto device = DelayedDevice(GetParam());
  const absl::Status status = RunThreadRanks(GetParam(), options, [&](int, Communicator& world) {
    StreamedCommunicator streamed(world, *device);
    return RunCollectiveTable(streamed, {0, 1, 7, 127, 3001});
  });
  EXPECT_TRUE(status.ok()) << status;
}

INSTANTIATE_TEST_SUITE_P(Ranks, StreamedCollectives, testing::Range(1, 5));

// Many operations under way at once, none of them awaited by the host: each is produced, reduced and added up by
// streams.
TEST(Streams, AChainOfOperationsNeedsNoHost) {
  const auto device = DelayedDevice(3);
  const absl::Status status = RunThreadRanks(3, {}, [&](int rank, Communicator& world) -> absl::Status {
    const auto compute = device->MakeStream(absl::StrCat("compute ", rank)).value();
    const Tensor x = device->Allocate({5000}, DType::kF32).value();
    std::vector<WorkPtr> works;
    for (int step = 0; step < 20; ++step) {
      compute->Enqueue([x] {
        for (float& value : x.span<float>()) value = value / 3 + 1;  // of 3 ranks: x becomes x + 3
      });
      works.push_back(world.AllReduce(x, ReduceOp::kSum, {.tag = "step", .after = compute->Record()}));
      works.back()->WaitOn(*compute);
    }
    compute->Synchronize();
    for (const WorkPtr& work : works) SHOAL_RETURN_IF_ERROR(work->Wait());
    for (const float value : x.span<float>()) {
      if (value != 60) return absl::InternalError(absl::StrCat("20 steps of 3 gave ", value));
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Streams, AnInlineStreamWaitsOnTheHost) {
  const absl::Status status = RunThreadRanks(2, {}, [](int rank, Communicator& world) -> absl::Status {
    const auto stream = CpuDevice({})->MakeStream("main").value();
    const Tensor x = TableTensor(rank, 100, DType::kF32);
    const WorkPtr work = world.AllReduce(x, ReduceOp::kSum, {.tag = "x", .after = stream->Record()});
    work->WaitOn(*stream);
    EXPECT_TRUE(work->Done());
    return work->Wait();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Streams, AnOperationThatWaitsForAnEventHoldsUpNoOtherCommunicator) {
  const absl::Status status = RunThreadRanks(2, {}, [](int, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(const auto other, world.Split(0, world.rank(), "other"));
    const auto gate = std::make_shared<HostEvent>();
    const Tensor x = Tensor::Zeros({5000}, DType::kF32), y = TableTensor(0, 5000, DType::kF32);
    const WorkPtr held = world.AllReduce(x, ReduceOp::kSum, {.tag = "held", .after = gate});
    const WorkPtr behind = world.Barrier({.tag = "behind"});
    for (int i = 0; i < 10; ++i) SHOAL_RETURN_IF_ERROR(other->Broadcast(y, 0, {.tag = "free"})->Wait());
    EXPECT_FALSE(held->Done());
    EXPECT_FALSE(behind->Done()) << "order within a communicator";
    for (int64_t i = 0; i < 5000; ++i) Put(x, i, TableValue(world.rank(), i, DType::kF32));  // still the caller's
    gate->Set();
    SHOAL_RETURN_IF_ERROR(held->Wait());
    for (int64_t i = 0; i < 5000; ++i)
      EXPECT_EQ(Get(x, i), TableValue(0, i, DType::kF32) + TableValue(1, i, DType::kF32)) << "element " << i;
    return behind->Wait();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// Even where there is nothing to do: what follows must not overtake what produces the buffer.
TEST(Streams, AGroupOfOneWaitsForItsEventToo) {
  const absl::Status status = RunThreadRanks(1, {}, [](int, Communicator& world) -> absl::Status {
    const auto gate = std::make_shared<HostEvent>();
    const WorkPtr work =
        world.AllReduce(Tensor::Zeros({3}, DType::kF32), ReduceOp::kSum, {.tag = "alone", .after = gate});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(work->Done());
    gate->Set();
    return work->Wait();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(StreamFaults, ADeadlineSaysThatTheRanksOwnStreamHoldsItUp) {
  CommOptions options;
  options.flight_dir = testing::TempDir() + "/held_flight";
  std::filesystem::remove_all(options.flight_dir);
  const absl::Status first = RunThreadRanks(2, options, [](int rank, Communicator& world) {
    const auto gate = std::make_shared<HostEvent>();
    CallOptions call{.tag = "grad bucket 4"};
    if (rank == 1) {
      call.deadline = absl::Milliseconds(200);
      call.after = gate;
    }
    return world.AllReduce(Tensor::Zeros({100}, DType::kF32), ReduceOp::kSum, call)->Wait();
  });
  EXPECT_EQ(first.code(), absl::StatusCode::kDeadlineExceeded) << first;
  EXPECT_THAT(std::string(first.message()),
              HasSubstr("all_reduce 'grad bucket 4' (#1 of communicator world) on rank 1"));
  EXPECT_THAT(std::string(first.message()), HasSubstr("it still waits for work of this rank's own stream"));
  const auto why = WhyHang(options.flight_dir);
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_THAT(*why, HasSubstr("rank 1: all_reduce 'grad bucket 4', 400 bytes, not begun"));
  EXPECT_THAT(*why, HasSubstr("held up by work of its own stream: rank 1"));
}

TEST(StreamFaults, AFailedOperationLetsItsStreamGoOnButNotAheadOfTheEvent) {
  const auto device = DelayedDevice(5);
  const absl::Status status = RunThreadRanks(2, {}, [&](int rank, Communicator& world) -> absl::Status {
    if (rank == 1) return absl::DataLossError("its disk is gone");
    const auto consumer = device->MakeStream("consumer").value();
    const auto gate = std::make_shared<HostEvent>();
    const Tensor x = Tensor::Zeros({100}, DType::kF32);
    const WorkPtr work = world.AllReduce(x, ReduceOp::kSum, {.tag = "x", .after = gate});
    work->WaitOn(*consumer);
    const EventPtr behind = consumer->Record();
    EXPECT_THAT(std::string(work->Wait().message()), HasSubstr("rank 1 failed: its disk is gone"));
    EXPECT_FALSE(behind->Done());
    gate->Set();
    behind->Wait();
    // And one that fails at once, as all do from now on.
    world.AllReduce(x, ReduceOp::kSum, {.tag = "late"})->WaitOn(*consumer);
    consumer->Synchronize();
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

TEST(FakeWorld, WaitsForTheEventInOrderAndDoesNotHoldUpTheCaller) {
  const auto world = FakeWorld(1, 2);
  const auto gate = std::make_shared<HostEvent>();
  const Tensor in = Tensor::Zeros({2}, DType::kF32), all = Tensor::Zeros({4}, DType::kF32);
  const Tensor back = Tensor::Zeros({2}, DType::kF32);
  const WorkPtr gather = world->AllGather(in, all, {.tag = "gather", .after = gate});
  const WorkPtr scatter = world->ReduceScatter(all, back, ReduceOp::kSum, {.tag = "scatter"});
  EXPECT_FALSE(gather->Done());
  EXPECT_FALSE(scatter->Done());
  in.data<float>()[1] = 5;  // still the caller's
  gate->Set();
  const auto stream = DelayedDevice(1)->MakeStream("consumer").value();
  scatter->WaitOn(*stream);
  stream->Enqueue([back] { back.data<float>()[1] += 1; });
  stream->Synchronize();
  EXPECT_TRUE(gather->Wait().ok());
  EXPECT_EQ(all.data<float>()[3], 5);
  EXPECT_EQ(back.data<float>()[1], 6);
}

}  // namespace
}  // namespace shoal
