// OwnerSum: how optimizers learn norms of tensors that are cut among ranks.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "parallel/mesh.h"

namespace shoal {

class OwnerSum {
 public:
  virtual ~OwnerSum() = default;
  // Adds each of `values` up over the owners, in rank order: the same bits on every rank. Collective; communication
  // errors.
  virtual absl::Status Sum(absl::Span<double> values) = 0;
};

// With ZeRO 0, or one rank, every rank owns everything and the sum is what it has; from ZeRO 1 on it is one all-reduce
// over mesh.control() (which outlives it).
std::unique_ptr<OwnerSum> MakeOwnerSum(Mesh& mesh, int zero_stage);
// Of a rank that owns everything.
std::unique_ptr<OwnerSum> SoleOwner();

}  // namespace shoal
