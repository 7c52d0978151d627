// The runs of a sweep as processes of this machine, as many at once as its cores hold.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "launch/experiment/sweep.h"

namespace shoal {

// A run and what it takes of the machine.
struct PlannedRun {
  const SweepRun* run = nullptr;
  int threads = 0;  // per rank; 0: the job's own choice
  int cores = 1;    // counted against the machine's; 0: not counted
};

// `runs` (of `sweep`, not owned) on `cores` cores. Where runtime.threads_per_rank is unset, a run has the machine to
// itself, or with jobs_at_once its share of it. InvalidArgument when jobs_at_once of even the smallest cannot run at
// once.
absl::StatusOr<std::vector<PlannedRun>> PlanRuns(const Sweep& sweep, const std::vector<const SweepRun*>& runs,
                                                 int cores);

struct RunEnd {
  const SweepRun* run = nullptr;
  int code = 0;  // of the process; 128 + signal where one killed it
  double seconds = 0;
  absl::Status start = absl::OkStatus();  // why it could not be started
  std::string moved = "";                 // where the directory of a changed run went; empty: it was not changed
};

// Runs `planned` in order, `program` being shoal, and calls `on_end` as each ends. A run that is still held by another
// process is waited for, a minute at most: after a kill the runs of the last sweep save what they have. Upon SIGINT,
// SIGTERM or SIGUSR1 (InstallStopSignals) nothing is started any more and what runs is asked to save and stop.
void RunHere(const Sweep& sweep, const std::vector<PlannedRun>& planned, int cores, const std::string& program,
             absl::FunctionRef<void(const RunEnd&)> on_end);

// The command of a run's process.
std::vector<std::string> RunCommand(const Sweep& sweep, const SweepRun& run, const std::string& program);

}  // namespace shoal
