#include "parallel/mesh.h"

#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Create(Communicator& world, Epoch epoch) {
  std::unique_ptr<Mesh> mesh(new Mesh());
  mesh->epoch_ = std::move(epoch);
  SHOAL_ASSIGN_OR_RETURN(mesh->control_, world.Split(0, world.rank(), "control"));
  SHOAL_ASSIGN_OR_RETURN(mesh->gradients_, world.Split(0, world.rank(), "gradients"));
  SHOAL_ASSIGN_OR_RETURN(mesh->checkpoint_, world.Split(0, world.rank(), "checkpoint"));
  return mesh;
}

}  // namespace shoal
