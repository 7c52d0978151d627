// `shoal launch`: the mpirun line or the Slurm script of a job, printed or run.
#pragma once

#include <string>
#include <vector>

namespace shoal {

struct LaunchArgs {
  std::string job, run_dir;
  std::vector<std::string> sets;
  int ranks = 2, threads = 1;
  int nodes = 1;
  int minutes = 60;     // Slurm time limit
  int requeues = 3;     // after a communication error (exit 4)
  std::string program;  // path of shoal
};

// mpirun with the flags that Shoal wants: ranks on T cores each, or unbound when T is 1.
std::string MpirunLine(const LaunchArgs& args);
// An sbatch script: USR1 two minutes before the limit, so that the run saves; requeued while its state is "stopped",
// and after exit 4 at most `requeues` times.
std::string SlurmScript(const LaunchArgs& args);

}  // namespace shoal
