// What attention exchanges, by hand and as it really does.
#include "parallel/sequence_traffic.h"

#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "parallel/data_parallel.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

TEST(SequenceTraffic, IsThatOfHeadsDegreeAndMode) {
  struct Row {
    int64_t heads, key_heads;
    SequenceSpread spread;
    double element, all_to_all, ring, sent;
  };
  // Heads of 16 elements. All-to-alls: 2 (2 H + 2 x key heads sent) 16 x element; rings: 2 x key heads x 16 x
  // (2 (r - 1) element + r x 4).
  const Row rows[] = {{8, 8, {1, 1}, 4, 0, 0, 0},          {8, 8, {4, 1}, 4, 4096, 0, 3072},
                      {8, 2, {2, 1}, 4, 2560, 0, 1280},  // each rank one of two
                      {8, 2, {8, 1}, 4, 4096, 0, 3584},  // each on four ranks
                      {6, 3, {2, 1}, 4, 2560, 0, 1280},  // the middle one on both
                      {6, 6, {4, 1}, 2, 1536, 0, 1152},  // one or two each
                      {8, 2, {1, 2}, 4, 0, 1024, 1024},    {8, 2, {1, 8}, 4, 0, 5632, 5632},
                      {8, 2, {1, 4}, 2, 0, 1792, 1792},     // gradients in f32
                      {8, 2, {4, 2}, 4, 3072, 2048, 4352},  // both
                      {6, 1, {2, 4}, 8, 4096, 5120, 7168}};
  for (const Row& row : rows) {
    const AttentionHeads heads{.heads = row.heads, .key_heads = row.key_heads, .size = 16};
    const SequenceTraffic traffic = TrafficOf(heads, row.spread, row.element);
    const std::string at =
        absl::StrCat(row.heads, "/", row.key_heads, ", ", row.spread.ulysses, " x ", row.spread.ring);
    EXPECT_DOUBLE_EQ(traffic.all_to_all, row.all_to_all) << at;
    EXPECT_DOUBLE_EQ(traffic.ring, row.ring) << at;
    EXPECT_DOUBLE_EQ(traffic.sent, row.sent) << at;
  }
}

// Bytes that all ranks hand to all-to-alls and sends.
class Exchanged : public SpanSink {
 public:
  void Add(const Span& span) override {
    const std::lock_guard lock(mutex_);
    if (absl::EndsWith(span.note, " delta")) return;  // a number of each head: charged to nobody
    if (span.name == "all_to_all") all_to_all += span.bytes;
    if (span.name == "send") ring += span.bytes;
  }
  double all_to_all = 0, ring = 0;

 private:
  std::mutex mutex_;
};

TEST(SequenceTraffic, IsWhatAttentionSends) {
  const std::vector<int32_t> lengths = {64, 32};
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const auto& [query_heads, key_heads] : {std::pair{8, 8}, {8, 2}, {6, 3}}) {
      for (const SequenceSpread spread : {SequenceSpread{2, 1}, {4, 1}, {1, 4}, {2, 2}}) {
        const AttentionHeads heads{.heads = query_heads, .key_heads = key_heads, .size = 8};
        Exchanged exchanged;
        const absl::Status status = RunThreadRanks(spread.degree(), {}, [&](int, Communicator& world) -> absl::Status {
          SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(world, {}));
          const SequenceShard shard = ShardSequences(lengths, spread, *mesh);
          SHOAL_ASSIGN_OR_RETURN(const auto none, DataParallel::Create({}, *mesh, {}));
          ThreadPool pool(1);
          SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(1 << 24, DeviceKind::kCpu));
          StepContext ctx({.ops = {.pool = &pool}, .arena = arena.get(), .params = none.get(), .compute = compute});
          const Tensor fused = Tensor::Zeros({shard.own_rows(), heads.columns()}, compute);
          Tensor dattended = Tensor::Zeros({shard.own_rows(), heads.heads * heads.size}, compute);
          SHOAL_RETURN_IF_ERROR(world.Barrier({.tag = "start"})->Wait());
          world.set_spans(&exchanged);
          auto kept = SequenceAttentionFwd(ctx, shard, heads, "layer", fused);
          SequenceAttentionBwd(ctx, shard, heads, "layer", std::move(kept), std::move(dattended));
          SHOAL_RETURN_IF_ERROR(world.Barrier({.tag = "end"})->Wait());
          world.set_spans(nullptr);
          return absl::OkStatus();
        });
        ASSERT_TRUE(status.ok()) << status;
        const SequenceTraffic traffic = TrafficOf(heads, spread, static_cast<double>(DTypeBytes(compute)));
        const std::string at = absl::StrCat(query_heads, "/", key_heads, ", ", spread.ulysses, " x ", spread.ring, ", ",
                                            DTypeName(compute));
        EXPECT_DOUBLE_EQ(exchanged.all_to_all, 96 * traffic.all_to_all) << at;
        EXPECT_DOUBLE_EQ(exchanged.ring, 96 * traffic.ring) << at;
      }
    }
  }
}

TEST(SequenceTraffic, ExchangesInTurnGrowWithARingsChunks) {
  const AttentionHeads heads{.heads = 8, .key_heads = 2, .size = 64};
  EXPECT_EQ(ExchangesInTurn(heads, {1, 1}, 1000, 4), 0);
  EXPECT_EQ(ExchangesInTurn(heads, {8, 1}, 1000, 4), 5);
  // 2 heads of 512 bytes a row: 100 rows are one chunk of up to 512 KiB, 1,000 rows three, which two heads share
  // evenly.
  EXPECT_EQ(ExchangesInTurn(heads, {1, 4}, 100, 4), 7);
  EXPECT_EQ(ExchangesInTurn(heads, {1, 4}, 1000, 4), 2 * 7);
  EXPECT_EQ(ExchangesInTurn(heads, {1, 4}, 4000, 4), 14 * 7);
  EXPECT_EQ(ExchangesInTurn(heads, {1, 4}, 1'000'000, 4), 32 * 7);  // as many as there are at most
  EXPECT_EQ(ExchangesInTurn(heads, {2, 4}, 1000, 4), 5 + 3 * 7);    // one head of 2,000 rows
}

}  // namespace
}  // namespace shoal
