#include "parallel/unit_store.h"

#include <gtest/gtest.h>

#include <vector>

#include "comm/world.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// Units of one parameter each, of 100, 101, ... elements. Element e of unit u is 1000 u + e + version.
class Fixture {
 public:
  Fixture(int units, Communicator& ranks) : ranks_(ranks) {
    for (int u = 0; u < units; ++u) params.push_back({.name = "p" + std::to_string(u), .shape = {100 + u}, .id = u});
    std::vector<const Param*> pointers;
    for (const Param& param : params) pointers.push_back(&param);
    plan_ = PlanShards({.params = pointers, .ranks = ranks.size(), .bucket_bytes = 4});
    arena = *Arena::Create(1 << 20, DeviceKind::kCpu);
    for (const Bucket& bucket : plan_.buckets)
      shards_.push_back(Tensor::Zeros({bucket.counts[ranks.rank()]}, DType::kF32));
    SetVersion(0);
    store = std::make_unique<UnitStore>(plan_, shards_, ranks, *arena);
  }
  void SetVersion(int version) {
    version_ = version;
    for (size_t b = 0; b < plan_.buckets.size(); ++b) {
      for (const ShardPiece& piece : plan_.buckets[b].owned[ranks_.rank()]) {
        for (int64_t e = piece.begin; e < piece.end; ++e)
          shards_[b].data<float>()[e - piece.begin] = Value(piece.param, e);
      }
    }
  }
  float Value(int unit, int64_t e) const { return static_cast<float>(1000 * unit + e + version_); }
  // Uses these units in turn and looks at every element.
  absl::Status Use(const std::vector<int>& units) {
    for (const int unit : units) {
      SHOAL_ASSIGN_OR_RETURN(const Tensor weight, store->Weight(params[unit]));
      EXPECT_EQ(weight.size(), 100 + unit);
      for (int64_t e = 0; e < weight.size(); ++e) {
        if (weight.data<float>()[e] == Value(unit, e)) continue;
        ADD_FAILURE() << "unit " << unit << ", element " << e << ": " << weight.data<float>()[e];
        break;
      }
    }
    return absl::OkStatus();
  }
  std::vector<Param> params;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<UnitStore> store;

 private:
  Communicator& ranks_;
  ShardPlan plan_;
  std::vector<Tensor> shards_;
  int version_ = 0;
};

TEST(UnitStore, GathersAheadInTheRecordedOrderAndLetsGo) {
  const std::vector<int> training = {0, 1, 1, 2, 1, 3, 4, 5, 5, 4, 3, 2, 3, 2, 1}, evaluation = {0, 1, 2, 3, 4, 5};
  for (const int ranks : {1, 2, 3, 4}) {
    const absl::Status status = RunThreadRanks(ranks, {}, [&](int, Communicator& world) -> absl::Status {
      Fixture f(6, world);
      const auto unit_bytes = [](int units) { return int64_t{4} * 106 * units; };
      for (int step = 0; step < 4; ++step) {
        f.SetVersion(step);
        SHOAL_RETURN_IF_ERROR(f.store->BeginPass(UnitStore::Pass::kTraining));
        SHOAL_RETURN_IF_ERROR(f.Use(training));
        SHOAL_RETURN_IF_ERROR(f.store->BeginPass(UnitStore::Pass::kEvaluation));
        SHOAL_RETURN_IF_ERROR(f.Use(evaluation));
        SHOAL_RETURN_IF_ERROR(f.store->Release());
        EXPECT_GT(f.store->peak_bytes(), unit_bytes(step == 0 ? 1 : 2));
        EXPECT_LE(f.store->peak_bytes(), unit_bytes(step == 0 ? 2 : 1 + UnitStore::kAhead));
        f.arena->Fit(1 << 16);  // refuses while anything is in it
      }
      // Out of any pass, out of order, and the order that now is the one.
      SHOAL_RETURN_IF_ERROR(f.Use({3, 0, 3, 5}));
      for (int pass = 0; pass < 3; ++pass) {
        SHOAL_RETURN_IF_ERROR(f.store->BeginPass(UnitStore::Pass::kTraining));
        SHOAL_RETURN_IF_ERROR(f.Use({0, 1, 2, 5, 0, 4}));
      }
      SHOAL_RETURN_IF_ERROR(f.store->BeginPass(UnitStore::Pass::kTraining));
      SHOAL_RETURN_IF_ERROR(f.Use({0, 1, 2, 5, 0, 4, 3, 2}));
      SHOAL_RETURN_IF_ERROR(f.store->Release());
      EXPECT_LE(f.store->peak_bytes(), unit_bytes(1 + UnitStore::kAhead));
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << ranks << " ranks: " << status;
  }
}

TEST(UnitStore, AHandleKeepsItsWeight) {
  const absl::Status status = RunThreadRanks(2, {}, [&](int, Communicator& world) -> absl::Status {
    Fixture f(6, world);
    for (int pass = 0; pass < 2; ++pass) {
      SHOAL_RETURN_IF_ERROR(f.store->BeginPass(UnitStore::Pass::kTraining));
      SHOAL_ASSIGN_OR_RETURN(const Tensor held, f.store->Weight(f.params[0]));
      SHOAL_RETURN_IF_ERROR(f.Use({1, 2, 3, 4, 5}));
      SHOAL_RETURN_IF_ERROR(f.store->Release());
      for (int64_t e = 0; e < 100; ++e) EXPECT_EQ(held.data<float>()[e], f.Value(0, e));
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace shoal
