#include "optim/owner_sum.h"

#include <algorithm>
#include <vector>

#include "runtime/base/status.h"

namespace shoal {
namespace {

class Sole : public OwnerSum {
 public:
  absl::Status Sum(absl::Span<double> /*values*/) override { return absl::OkStatus(); }
};

class OverMesh : public OwnerSum {
 public:
  explicit OverMesh(Mesh& mesh) : mesh_(mesh) {}
  absl::Status Sum(absl::Span<double> values) override {
    SHOAL_ASSIGN_OR_RETURN(const auto sums, AllReduceValues(mesh_.control(), {values.begin(), values.end()},
                                                            ReduceOp::kSum, {.tag = "optimizer norms"}));
    std::copy(sums.begin(), sums.end(), values.begin());
    return absl::OkStatus();
  }

 private:
  Mesh& mesh_;
};

}  // namespace

std::unique_ptr<OwnerSum> SoleOwner() { return std::make_unique<Sole>(); }

std::unique_ptr<OwnerSum> MakeOwnerSum(Mesh& mesh, int zero_stage) {
  if (zero_stage == 0 || mesh.size() == 1) return SoleOwner();
  return std::make_unique<OverMesh>(mesh);
}

}  // namespace shoal
