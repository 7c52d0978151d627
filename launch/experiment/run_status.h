// Where the runs of a sweep stand: what their directories say against the jobs that the sweep asks for.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "launch/experiment/sweep.h"

namespace shoal {

enum class RunState : uint8_t {
  kNew,  // no start yet
  kFinished,
  kDiverged,  // a result as well: the same job would diverge again
  kStopped,   // on request, saved
  kFailed,
  kBroken,   // was running and is gone, or still runs
  kChanged,  // what is there was started with another job
};
// For tables and results.csv: "finished", "not run", ...
const char* Text(RunState state);
// Whether the run is never started again.
bool Settled(RunState state);

struct RunStatus {
  RunState state = RunState::kNew;
  std::string detail = "";  // the words of its state file; of kChanged, "field: old -> new" of every change that counts
};
// Reads the run's directory; changes count when they affect results (ResultChanges), or when the ranks differ.
RunStatus StatusOf(const Sweep& sweep, const SweepRun& run);

// Moves the directory of a run that changed to the first free FOLDER/old/NAME-K, which it returns: nothing is deleted.
// EnvironmentError when a process still writes there.
absl::StatusOr<std::string> MoveAside(const Sweep& sweep, const SweepRun& run);

}  // namespace shoal
