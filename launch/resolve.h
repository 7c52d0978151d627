// From a loaded job to one with every choice settled, and all that cannot be named at once.
#pragma once

#include "absl/status/statusor.h"
#include "launch/config_loader.h"

namespace shoal {

// Checks the job's combinations for `ranks` ranks (0: unknown) and fills presets. InvalidArgument lists every problem
// with the place of its field. `compute: AUTO` stays: ranks settle it together, the weakest decides (SettleCompute).
absl::StatusOr<config::Job> ResolveJob(const LoadedJob& loaded, int ranks);

// What this many ranks cannot do of a resolved job, a line each that begins with a field. Of ResolveJob too where ranks
// are known; under mpirun they are when all have started.
absl::Status CheckRanks(const config::Job& job, int ranks);
// What only thread ranks have, where ranks are processes.
absl::Status CheckProcesses(const config::Job& job);

// What `compute: AUTO` means for hosts of which the weakest has, or has not, bf16 instructions; and a sentence for the
// log.
struct ComputeChoice {
  config::RuntimeConfig::Compute compute;
  std::string reason;
};
enum class WeakestHost : uint8_t { kHasBf16, kHasNone };
ComputeChoice SettleCompute(const config::Job& job, WeakestHost weakest);

}  // namespace shoal
