// A sweep as a Slurm job array.
#pragma once

#include <string>
#include <vector>

#include "launch/experiment/sweep.h"

namespace shoal {

struct ArrayOptions {
  std::string program;  // path of shoal
  int threads = 1;      // cores per rank where the job does not say
  int minutes = 60;     // limit of each run
  int requeues = 3;     // after a communication error (exit 4)
};

// An sbatch script with one task per run of `runs` (one or more, not owned), which starts it by its name: the script
// still means the same runs when others have finished since. Every task saves before its limit and is requeued.
std::string SlurmArrayScript(const Sweep& sweep, const SweepArgs& args, const std::vector<const SweepRun*>& runs,
                             const ArrayOptions& options);

}  // namespace shoal
