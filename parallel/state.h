// State: everything a checkpoint holds, visited by one function that also serves reshard, diff and inspect.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "parallel/box.h"

namespace shoal {

// Receives every piece of state. The same calls save (the visitor reads) and load (the visitor writes through the
// references).
class StateVisitor {
 public:
  virtual ~StateVisitor() = default;
  // A rank's part of the tensor `name`: `local` holds exactly `box` (contiguous host memory). Several ranks may hold
  // equal boxes (replicas).
  virtual void Shard(absl::string_view name, const Tensor& local, const Box& box) = 0;
  // Shape of a tensor whose shards are visited as boxes of its flattened form.
  virtual void TrueShape(absl::string_view /*name*/, const Shape& /*shape*/) {}
  // Values that are equal on all ranks.
  virtual void Scalar(absl::string_view name, int64_t& value) = 0;
  virtual void Scalar(absl::string_view name, double& value) = 0;
  virtual void Blob(absl::string_view name, std::string& value) = 0;
};

class Stateful {
 public:
  virtual ~Stateful() = default;
  virtual void VisitState(StateVisitor& visitor) = 0;
};

}  // namespace shoal
