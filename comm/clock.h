// One clock for all ranks' traces.
#pragma once

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace shoal {

// Collective: seconds to add to this rank's SteadySeconds to get rank 0's. Of several round trips the shortest counts;
// the error is at most half of it (Cristian's algorithm, Distributed Computing 1989).
absl::StatusOr<double> ClockOffset(Communicator& world);

}  // namespace shoal
