// bench sequence_memory, sequence_pairs: what spreading sequences takes and costs.
#pragma once

#include "absl/status/status.h"
#include "launch/commands.h"

namespace shoal {

// Peak of a rank's arena in forward and backward of one attention layer, --tokens of one sequence on one rank and on 8
// thread ranks, by mode.
absl::Status BenchSequenceMemory(const BenchArgs& args);
// Steps of a job on one rank, with parallel.sequence and without, in turn; --steps pairs.
absl::Status BenchSequencePairs(const BenchArgs& args);

}  // namespace shoal
