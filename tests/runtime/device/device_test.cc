#include "runtime/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

using testing::HasSubstr;
using Streams = CpuDeviceOptions::Streams;

std::unique_ptr<Stream> MakeStream(const CpuDeviceOptions& options, absl::string_view name) {
  return CpuDevice(options)->MakeStream(name).value();  // a stream outlives its device
}

// Plain variables are shared between streams on purpose: ThreadSanitizer sees what lacks an event.
class CpuStreams : public testing::TestWithParam<CpuDeviceOptions> {
 protected:
  std::unique_ptr<Stream> Make(absl::string_view name) { return MakeStream(GetParam(), name); }
};

TEST_P(CpuStreams, WorkOfOneStreamRunsInOrder) {
  const auto stream = Make("a");
  std::vector<int> ran;
  for (int i = 0; i < 50; ++i) stream->Enqueue([&ran, i] { ran.push_back(i); });
  stream->Synchronize();
  std::vector<int> want(50);
  std::iota(want.begin(), want.end(), 0);
  EXPECT_EQ(ran, want);
  EXPECT_EQ(stream->name(), "a");
}

TEST_P(CpuStreams, AnEventIsDoneOnceWhatIsBeforeItIs) {
  const auto stream = Make("a");
  int value = 0;
  stream->Enqueue([&] { value = 1; });
  const EventPtr event = stream->Record();
  event->Wait();
  EXPECT_TRUE(event->Done());
  EXPECT_EQ(value, 1);
}

TEST_P(CpuStreams, WaitingOrdersWorkAcrossStreams) {
  const auto ping = Make("ping"), pong = Make("pong");
  std::vector<int> seen;
  int value = 0;
  for (int i = 0; i < 50; ++i) {
    ping->Enqueue([&] { ++value; });
    pong->WaitFor(ping->Record());
    pong->Enqueue([&] { seen.push_back(value); });
    ping->WaitFor(pong->Record());  // the next increment is not early
  }
  pong->Synchronize();
  std::vector<int> want(50);
  std::iota(want.begin(), want.end(), 1);
  EXPECT_EQ(seen, want);
}

TEST_P(CpuStreams, AStreamThatEndsRunsWhatItHolds) {
  int ran = 0;
  EventPtr last;
  {
    const auto stream = Make("a");
    for (int i = 0; i < 20; ++i) stream->Enqueue([&] { ++ran; });
    last = stream->Record();
  }
  EXPECT_EQ(ran, 20);
  EXPECT_TRUE(last->Done()) << "events outlive their stream";
}

INSTANTIATE_TEST_SUITE_P(Modes, CpuStreams,
                         testing::Values(CpuDeviceOptions{.streams = Streams::kInline},
                                         CpuDeviceOptions{.streams = Streams::kAsynchronous},
                                         CpuDeviceOptions{.streams = Streams::kAsynchronous,
                                                          .longest_delay = absl::Microseconds(500),
                                                          .seed = 7}),
                         [](const auto& row) {
                           return row.param.streams == Streams::kInline             ? "Inline"
                                  : row.param.longest_delay == absl::ZeroDuration() ? "Asynchronous"
                                                                                    : "Delayed";
                         });

TEST(InlineStreams, RunOnTheCallersThreadAtOnce) {
  const auto stream = MakeStream({}, "a");
  std::thread::id ran_on;
  stream->Enqueue([&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  EXPECT_TRUE(stream->Record()->Done());
}

TEST(AsynchronousStreams, NeitherHoldUpTheCallerNorEachOther) {
  const CpuDeviceOptions options{.streams = Streams::kAsynchronous};
  const auto held = MakeStream(options, "held"), free = MakeStream(options, "free");
  const auto gate = std::make_shared<HostEvent>();
  bool ran = false;
  held->WaitFor(gate);
  held->Enqueue([&] { ran = true; });
  const EventPtr behind = held->Record();
  free->Synchronize();
  EXPECT_FALSE(behind->Done());
  gate->Set();
  held->Synchronize();
  EXPECT_TRUE(ran);
}

TEST(AsynchronousStreams, PauseBeforeTheirWork) {
  const auto stream =
      MakeStream({.streams = Streams::kAsynchronous, .longest_delay = absl::Milliseconds(2), .seed = 1}, "paused");
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) stream->Enqueue([] {});
  stream->Synchronize();
  EXPECT_GT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(25)) << "50 pauses of 1 ms on average";
}

TEST(CpuDevice, AllocatesZerosOrSaysWhyNot) {
  const auto device = CpuDevice({});
  EXPECT_EQ(device->kind(), DeviceKind::kCpu);
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{3, 5}, Shape{3000000}}) {
    const auto tensor = device->Allocate(shape, DType::kF32);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->shape(), shape);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->raw()) % 64, 0u);
    for (const float x : tensor->span<float>()) ASSERT_EQ(x, 0);
  }
  EXPECT_EQ(device->Allocate({2, -1}, DType::kF32).status().code(), absl::StatusCode::kInvalidArgument);
  for (const int bits : {58, 61, 62}) {
    const absl::Status status = device->Allocate({int64_t{1} << bits, 2}, DType::kF64).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("f64 x [", int64_t{1} << bits, ", 2]")));
  }
}

TEST(MetaDevice, HasShapesOnlyAndRunsNothing) {
  const auto device = MetaDevice();
  EXPECT_EQ(device->kind(), DeviceKind::kMeta);
  const auto tensor = device->Allocate({int64_t{1} << 40}, DType::kF32);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_TRUE(tensor->meta());
  EXPECT_EQ(tensor->raw(), nullptr);
  EXPECT_EQ(device->Allocate({-1}, DType::kF32).status().code(), absl::StatusCode::kInvalidArgument);
  const auto stream = device->MakeStream("shapes").value();
  stream->WaitFor(std::make_shared<HostEvent>());
  stream->Enqueue([] { FAIL() << "work of a meta stream ran"; });
  EXPECT_TRUE(stream->Record()->Done());
  stream->Synchronize();
}

TEST(CudaDevice, SaysThatThisBuildHasNone) {
  const auto device = CudaDevice(0);
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("CUDA device 0: this build has no CUDA back end"));
}

}  // namespace
}  // namespace shoal
