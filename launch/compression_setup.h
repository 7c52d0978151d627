// What the compression planner needs to know of links and codecs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "comm/exchange_costs.h"
#include "launch/calibration.h"
#include "launch/job.pb.h"
#include "parallel/gradient_codecs.h"

namespace shoal {

// From the calibration of `key`, or measured now where there is none (a second or two); codecs that it does not know
// are measured. `how` becomes a line for the log. Collective over `world`: all ranks get rank 0's.
absl::StatusOr<ExchangeCosts> ExchangeCostsFor(const config::Job& job, const CalibrationKey& key,
                                               const GradientCodecs& codecs, Communicator& world, std::string* how);

}  // namespace shoal
