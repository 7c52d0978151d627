// How a run is asked to stop: SIGUSR1, a `stop` file in its run directory, and SIGTERM or SIGINT where they reach a
// rank directly.
#pragma once

#include <string>

namespace shoal {

// Installs the signal handlers of this process. Signals are a process's, so this is the one place of Shoal that keeps
// process state. Under mpirun SIGTERM and SIGINT keep their default effect: mpirun kills its ranks seconds later
// whatever they do.
enum class DirectSignals { kHandle, kLeave };
void InstallStopSignals(DirectSignals direct);

// A signal asked this process to stop.
bool StopSignalled();
// `shoal stop RUN` left its file.
bool StopFileExists(const std::string& run_dir);
// Leaves the file / takes it away (when a run starts again).
bool LeaveStopFile(const std::string& run_dir);
void RemoveStopFile(const std::string& run_dir);

// Seconds until the Slurm allocation of this process ends (SLURM_JOB_END_TIME); negative: no allocation, or no end
// known.
double AllocationSecondsLeft();

}  // namespace shoal
