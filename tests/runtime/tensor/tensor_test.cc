#include "runtime/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/base/status.h"
#include "runtime/tensor/arena.h"

namespace shoal {
namespace {

TEST(BFloat16, RoundsToNearestEvenAndKeepsSpecials) {
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f)), 1.0f);
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f + 0x1p-8f)), 1.0f);  // tie, to even
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f + 0x1p-7f + 0x1p-8f)), 1.0f + 0x1p-6f);
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f + 0x1.01p-8f)), 1.0f + 0x1p-7f);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(static_cast<float>(BFloat16(std::numeric_limits<float>::infinity()))));
}

TEST(Tensor, ViewsShareMemoryAndKeepStrides) {
  Tensor t = Tensor::Zeros({4, 6}, DType::kF32);
  for (int i = 0; i < 24; ++i) t.data<float>()[i] = static_cast<float>(i);
  const Tensor rows = t.Rows(1, 3);
  EXPECT_EQ(rows.data<float>()[0], 6);
  EXPECT_TRUE(rows.contiguous());
  const Tensor columns = t.Slice(1, 2, 4);
  EXPECT_EQ(columns.shape(), Shape({4, 2}));
  EXPECT_EQ(columns.stride(0), 6);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(columns.data<float>()[0], 2);
  EXPECT_EQ(t.View({2, -1}).shape(), Shape({2, 12}));
  EXPECT_EQ(t.dim(-1), 6);
}

TEST(Tensor, MetaHasAShapeAndNoMemory) {
  const Tensor t = Tensor::Zeros({int64_t{1} << 40}, DType::kF32, DeviceKind::kMeta);
  EXPECT_TRUE(t.meta());
  EXPECT_EQ(t.raw(), nullptr);
  EXPECT_EQ(t.bytes(), int64_t{4} << 40);
}

TEST(Arena, WhatIsLentKeepsTheRangeAndNotTheBlock) {
  auto arena = Arena::Create(1 << 22, DeviceKind::kCpu).value();
  Tensor lent;
  {
    const Tensor live = arena->Live({1000}, DType::kF32);
    lent = arena->Lend(live);
    EXPECT_EQ(lent.raw(), live.raw());
    EXPECT_EQ(lent.shape(), live.shape());
  }
  const Tensor again = arena->Live({1000}, DType::kF32);
  EXPECT_EQ(again.raw(), lent.raw()) << "the block was free";
  arena = nullptr;
  lent.data<float>()[999] = 1;  // still mapped
}

TEST(Arena, FramesAreAStackAndLiveBlocksAreReused) {
  for (const DeviceKind device : {DeviceKind::kCpu, DeviceKind::kMeta}) {
    auto arena = Arena::Create(1 << 22, device).value();
    const int64_t mark = arena->FrameMark();
    Tensor frame = arena->Frame({100}, DType::kF32);
    EXPECT_EQ(arena->frame_bytes(), 448);
    {
      Tensor live = arena->Live({1000}, DType::kF32);
      EXPECT_EQ(arena->peak(), 448 + 4032);
      if (device == DeviceKind::kCpu) live.data<float>()[999] = 1;
    }
    Tensor again = arena->Live({1000}, DType::kF32);
    EXPECT_EQ(arena->peak(), 448 + 4032) << "the freed block is used again";
    arena->Rewind(mark);
    EXPECT_EQ(arena->frame_bytes(), 0);
  }
}

TEST(Arena, FullIsAnErrorThatSaysWhatToDo) {
  auto arena = Arena::Create(1 << 21, DeviceKind::kCpu).value();
  try {
    arena->Live({1 << 20}, DType::kF32);
    FAIL() << "4 MiB fitted into 2 MiB";
  } catch (const StepAborted& aborted) {
    EXPECT_EQ(ExitCodeFor(aborted.status()), ExitCode::kMemory);
    EXPECT_NE(aborted.status().message().find("lower micro_batch"), absl::string_view::npos);
  }
  EXPECT_TRUE(arena->Live({1 << 18}, DType::kF32).defined()) << "and the arena goes on";
}

TEST(Arena, FittedFramesAndLiveValuesTakeTurns) {
  for (const DeviceKind device : {DeviceKind::kCpu, DeviceKind::kMeta}) {
    auto arena = Arena::Create(1 << 22, device).value();
    arena->Fit(8 * 4096);
    EXPECT_EQ(arena->fitted(), 8 * 4096);
    std::vector<int64_t> marks;
    std::vector<Tensor> frames, live;
    for (int i = 0; i < 7; ++i) {
      marks.push_back(arena->FrameMark());
      frames.push_back(arena->Frame({1024}, DType::kF32));
    }
    for (int i = 6; i >= 0; --i) {
      live.push_back(arena->Live({1024}, DType::kF32));
      frames.pop_back();
      arena->Rewind(marks[i]);
    }
    EXPECT_EQ(arena->peak(), arena->fitted());
    if (device == DeviceKind::kCpu) {
      for (int i = 1; i < 7; ++i) EXPECT_EQ(live[i].data<float>() + 1024, live[i - 1].data<float>()) << "one by one";
    }
  }
}

TEST(Arena, WhatDoesNotFitLiesAbove) {
  auto arena = Arena::Create(1 << 22, DeviceKind::kCpu).value();
  arena->Fit(4 * 4096);
  const auto fill = [](const Tensor& t, float value) {
    for (float& x : t.span<float>()) x = value;
    return t;
  };
  {
    const Tensor kept = fill(arena->Live({2048}, DType::kF32), 1);
    const int64_t outer = arena->FrameMark();
    const Tensor low = fill(arena->Frame({1024}, DType::kF32), 2);
    const int64_t inner = arena->FrameMark();
    const Tensor high = fill(arena->Frame({2048}, DType::kF32), 3);  // would run into `kept`
    const Tensor small = fill(arena->Live({1024}, DType::kF32), 4);  // fits between `low` and `kept`
    const Tensor large = fill(arena->Live({2048}, DType::kF32), 5);  // fits nowhere below
    EXPECT_EQ(arena->frame_bytes(), 3 * 4096);
    EXPECT_EQ(arena->peak(), 8 * 4096);
    float value = 1;
    for (const Tensor& t : {kept, low, high, small, large}) {
      for (const float x : t.span<float>()) ASSERT_EQ(x, value);
      ++value;
    }
    arena->Rewind(inner);
    EXPECT_EQ(arena->frame_bytes(), 4096);
    arena->Rewind(outer);
  }
  arena->Fit(arena->peak());
  EXPECT_EQ(arena->fitted(), 8 * 4096);
}

TEST(Arena, LiveTensorsMayOutliveIt) {
  Tensor survivor;
  {
    auto arena = Arena::Create(1 << 21, DeviceKind::kCpu).value();
    survivor = arena->Live({10}, DType::kF32);
  }
  survivor.data<float>()[9] = 3;
  EXPECT_EQ(survivor.data<float>()[9], 3);
}

}  // namespace
}  // namespace shoal
