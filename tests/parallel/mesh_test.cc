#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "runtime/base/status.h"
#include "runtime/device/stream.h"

namespace shoal {
namespace {

TEST(Mesh, ABucketsReductionGoesOnWhileItsNeighboursIsHeldUp) {
  const absl::Status status = RunThreadRanks(3, {}, [](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    EXPECT_NE(mesh->gradients(0).name(), mesh->gradients(1).name());
    const auto gate = std::make_shared<HostEvent>();
    std::vector<Tensor> buckets;
    std::vector<WorkPtr> works;
    for (size_t bucket = 0; bucket < 4; ++bucket) {
      buckets.push_back(Tensor::Zeros({1000}, DType::kF32));
      buckets.back().data<float>()[7] = static_cast<float>(rank + 1 + 10 * static_cast<int>(bucket));
      works.push_back(mesh->gradients(bucket).AllReduce(
          buckets.back(), ReduceOp::kSum, {.tag = "bucket", .after = bucket == 0 ? EventPtr(gate) : nullptr}));
    }
    for (const size_t bucket : {1, 3}) SHOAL_RETURN_IF_ERROR(works[bucket]->Wait());
    // Those behind the first wait for their turn.
    EXPECT_FALSE(works[0]->Done());
    EXPECT_FALSE(works[2]->Done());
    gate->Set();
    for (size_t bucket = 0; bucket < 4; ++bucket) {
      SHOAL_RETURN_IF_ERROR(works[bucket]->Wait());
      EXPECT_EQ(buckets[bucket].data<float>()[7], 6 + 30 * static_cast<int>(bucket)) << "bucket " << bucket;
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Mesh, GroupsAreAlignedPowersOfTwoOfRanksInsideIt) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    const absl::Status status = RunThreadRanks(ranks, {}, [ranks](int rank, Communicator& world) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
      EXPECT_EQ(mesh->sequence_group(1), nullptr);
      for (int degree = 2; degree <= 16; degree *= 2) {
        Communicator* group = mesh->sequence_group(degree);
        const int first = rank / degree * degree;
        const std::string at = absl::StrCat("rank ", rank, " of ", ranks, ", degree ", degree);
        EXPECT_EQ(group != nullptr, first + degree <= ranks) << at;
        if (group == nullptr) continue;
        EXPECT_EQ(group->size(), degree) << at;
        EXPECT_EQ(group->rank(), rank - first) << at;
        const Tensor own = Tensor::Zeros({1}, DType::kF32), all = Tensor::Zeros({degree}, DType::kF32);
        own.data<float>()[0] = static_cast<float>(rank);
        SHOAL_RETURN_IF_ERROR(group->AllGather(own, all, {.tag = "members"})->Wait());
        for (int i = 0; i < degree; ++i) EXPECT_EQ(all.data<float>()[i], static_cast<float>(first + i)) << at;
      }
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

}  // namespace
}  // namespace shoal
