// Mesh: the communicators of one epoch. Later issues add sequence and expert axes; today it has the data axis, which is
// the world.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace shoal {

// An epoch is a number and its members. Tensors, stores and optimizer state outlive it; communicators and meshes do
// not.
struct Epoch {
  int64_t number = 0;
  std::vector<int> members;  // member ids, for life; position = rank in this epoch
};

// Each communicator has one submitting thread and is independent of the others.
class Mesh {
 public:
  // Collective over `world` (not owned, outlives the mesh): splits it once per use, in one order on every rank.
  static absl::StatusOr<std::unique_ptr<Mesh>> Create(Communicator& world, Epoch epoch);

  int rank() const { return control_->rank(); }
  int size() const { return control_->size(); }
  const Epoch& epoch() const { return epoch_; }
  Communicator& control() { return *control_; }      // step scalars, plans, hashes, liveness: the main thread
  Communicator& gradients() { return *gradients_; }  // bucket reductions, parameter gathers of ZeRO 1: the main thread
  Communicator& checkpoint() { return *checkpoint_; }  // the checkpoint thread

 private:
  Mesh() = default;
  Epoch epoch_;
  std::unique_ptr<Communicator> control_, gradients_, checkpoint_;
};

}  // namespace shoal
