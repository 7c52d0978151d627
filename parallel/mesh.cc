#include "parallel/mesh.h"

#include <glog/logging.h>

#include <bit>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Create(Communicator& world, Epoch epoch) {
  std::unique_ptr<Mesh> mesh(new Mesh());
  mesh->epoch_ = std::move(epoch);
  SHOAL_ASSIGN_OR_RETURN(mesh->control_, world.Split(0, world.rank(), "control"));
  for (size_t i = 0; i < mesh->gradients_.size(); ++i) {
    SHOAL_ASSIGN_OR_RETURN(mesh->gradients_[i], world.Split(0, world.rank(), absl::StrCat("gradients ", i)));
  }
  SHOAL_ASSIGN_OR_RETURN(mesh->checkpoint_, world.Split(0, world.rank(), "checkpoint"));
  SHOAL_ASSIGN_OR_RETURN(mesh->parameters_, world.Split(0, world.rank(), "parameters"));
  // Without exchanges to warm them up, as NCCL's groups need: ours have no connections of their own, and the splits
  // have just used those of the world.
  for (int degree = 2; degree <= world.size(); degree *= 2) {
    const int group = world.rank() / degree;
    const int color = (group + 1) * degree <= world.size() ? group : -1;
    SHOAL_ASSIGN_OR_RETURN(auto comm, world.Split(color, world.rank(), absl::StrCat("sequence ", degree)));
    mesh->groups_.push_back(std::move(comm));
  }
  return mesh;
}

Communicator* Mesh::sequence_group(int degree) const {
  CHECK(degree >= 1 && std::has_single_bit(static_cast<unsigned>(degree))) << "degree " << degree;
  const auto level = static_cast<size_t>(std::countr_zero(static_cast<unsigned>(degree)));
  return level == 0 || level > groups_.size() ? nullptr : groups_[level - 1].get();
}

}  // namespace shoal
