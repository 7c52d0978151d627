// What a job says of its sequence plans (parallel.sequence), and the costs that they start from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "launch/calibration.h"
#include "launch/job.pb.h"
#include "launch/workload.h"
#include "parallel/mesh.h"
#include "parallel/sequence_control.h"

namespace shoal {

// The highest degree that mode and max_degree allow on any number of ranks, and which of them; "" where neither limits.
struct DegreeLimit {
  int degree = 1 << 20;
  const char* why = "";
};
DegreeLimit SequenceDegreeLimit(const config::Job& job);
// The highest degree that these ranks have too: a power of two.
int LargestSequenceDegree(const config::Job& job, int ranks);
SequenceMode SequenceModeOf(const config::Job& job);
// "degree 4: heads between 4 ranks", a line for each degree above 1.
std::string SequenceModesText(const config::Job& job, int ranks);

// How sequences are spread, with costs of this model from the machine's calibration where there is one, else from the
// speed of products and of exchanges, which it measures; `how` says which. The same on all ranks. Collective.
// With deterministic plans nothing is measured: what no calibration says is nominal.
// `product_peak` measures; it is rank 0's, and called where its answer is wanted.
absl::StatusOr<SequenceSpreading> SequencesFor(const config::Job& job, const CalibrationKey& key,
                                               absl::FunctionRef<double()> product_peak, const Mesh& mesh,
                                               Communicator& world, std::string* how);

// The control that parallel.sequence asks for; reads the plans to replay. `upcoming` is rank 0's.
absl::StatusOr<std::unique_ptr<SequenceControl>> ControlFor(const config::Job& job, const SequenceCostModel& costs,
                                                            Mesh& mesh, UpcomingBatch upcoming);

}  // namespace shoal
