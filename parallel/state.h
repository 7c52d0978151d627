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
  // Whether there is a value of this name to visit: a checkpoint may be from before a part of the state was asked for.
  virtual bool Has(absl::string_view /*name*/) const { return true; }
};

// The name under which the average of a tensor is visited, and the count of updates in the averages of a run.
inline std::string AverageName(absl::string_view tensor) { return std::string(tensor) + "/ema"; }
inline constexpr char kAverageUpdates[] = "ema.updates";

class Stateful {
 public:
  virtual ~Stateful() = default;
  virtual void VisitState(StateVisitor& visitor) = 0;
};

}  // namespace shoal
