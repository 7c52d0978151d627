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
