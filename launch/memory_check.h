// Whether what a job will take fits into its hosts, before anything is allocated.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "launch/predict.h"

namespace shoal {

// "1.2 GiB per rank predicted (weights .., ..)".
std::string MemoryText(const Prediction& prediction);
// ResourceExhausted, the same on all ranks, names the host whose ranks need more together than it has, and what would
// take less. `host` is this rank's. Collective.
absl::Status CheckMemoryFits(const Prediction& prediction, const std::string& host, Communicator& world);

}  // namespace shoal
