// In place of linear_program_clp.cc where CLP is not found.
#include "absl/status/status.h"
#include "parallel/linear_program.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<LinearSolver>> MakeLinearSolver(const LinearProgram&) {
  return absl::UnimplementedError(
      "this build has no solver of linear programs: install coinor-libclp-dev (Debian, Ubuntu; launch/setup does) "
      "or put CLP's prefix into CMAKE_PREFIX_PATH, and configure and build again");
}

std::string LinearSolverName() { return ""; }

}  // namespace shoal
