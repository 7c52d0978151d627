// Mesh: the communicators of one epoch. The data axis is the world; the sequence axis is all aligned groups of a power
// of two of ranks that lie inside it, a rank being in at most one of each degree. A later issue adds the expert axis.
#pragma once

#include <array>
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
  Communicator& control() { return *control_; }        // step scalars, plans, hashes, liveness: the main thread
  Communicator& parameters() { return *parameters_; }  // parameter gathers of ZeRO 3: the main thread
  Communicator& checkpoint() { return *checkpoint_; }  // the checkpoint thread
  // Bucket reductions, gathers of ZeRO 1 and 2: the main thread. Buckets take turns on two communicators: while the
  // codes of one are made or summed, the link has the other's to carry. PowerSGD's factors
  // all travel on that of bucket 0.
  Communicator& gradients(size_t bucket) { return *gradients_[bucket % gradients_.size()]; }
  // This rank's group of ranks [k degree, (k + 1) degree): the main thread. Null for degree 1, which needs none, and
  // where that group does not lie inside the mesh.
  Communicator* sequence_group(int degree) const;

 private:
  Mesh() = default;
  Epoch epoch_;
  std::unique_ptr<Communicator> control_, parameters_, checkpoint_;
  std::array<std::unique_ptr<Communicator>, 2> gradients_;
  std::vector<std::unique_ptr<Communicator>> groups_;  // [k]: of degree 2^(k+1)
};

}  // namespace shoal
