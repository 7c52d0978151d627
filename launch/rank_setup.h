// How many threads a rank gets, and what ranks check of each other before the first step.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "launch/job.pb.h"
#include "runtime/base/rank_context.h"

namespace shoal {

// How many cores this process may use.
int UsableCores();

// The rank's context. Collective: ranks that share an affinity mask share its cores. Threads beyond the mask are an
// InvalidArgument that names the launcher's flag; a single core of a larger machine is a `warning`.
absl::StatusOr<RankContext> MakeRankContext(Communicator& world, const config::Job& job, std::string* warning);

// Equal builds and jobs on all ranks, and one run directory that all of them see. Collective.
absl::Status CheckRanksFitTogether(Communicator& world, const config::Job& job, const std::string& run_dir);

}  // namespace shoal
