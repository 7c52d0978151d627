// From a loaded job to one with every choice settled, and all that cannot be named at once.
#pragma once

#include "absl/status/statusor.h"
#include "launch/config_loader.h"

namespace shoal {

// Checks the job's combinations for `ranks` ranks (0: unknown) and fills presets. InvalidArgument lists every problem
// with the place of its field. `compute: AUTO` stays: ranks settle it together (SettleCompute).
absl::StatusOr<config::Job> ResolveJob(const LoadedJob& loaded, int ranks);

// The compute type that `job` asks for on this host, and a sentence why when it was AUTO.
struct ComputeChoice {
  config::RuntimeConfig::Compute compute;
  std::string reason;
};
ComputeChoice SettleCompute(const config::Job& job);

}  // namespace shoal
