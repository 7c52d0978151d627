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
// The job as a BatchScript.
std::string SlurmScript(const LaunchArgs& args);

// An sbatch script around a command: USR1 two minutes before the limit, upon which the run saves; requeued while the
// run's state is "stopped", and after exit 4 at most `requeues` times.
struct BatchScript {
  std::vector<std::string> options;  // of sbatch: "--nodes=1"
  std::string prelude;               // shell lines that set $run, the run directory
  std::string command;
  int requeues = 3;
};
std::string BatchText(const BatchScript& script);

// As one word of a shell's command line.
std::string ShellQuoted(const std::string& word);
// The path of this program.
std::string ProgramPath();

}  // namespace shoal
