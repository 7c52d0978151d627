#include "launch/stop_request.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace shoal {
namespace {

volatile std::sig_atomic_t stop_signalled = 0;

void OnSignal(int) { stop_signalled = 1; }

std::string StopPath(const std::string& run_dir) { return run_dir + "/stop"; }

}  // namespace

void InstallStopSignals(DirectSignals direct) {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  if (direct == DirectSignals::kHandle) {
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
  }
}

bool StopSignalled() { return stop_signalled != 0; }
bool StopFileExists(const std::string& run_dir) { return ::access(StopPath(run_dir).c_str(), F_OK) == 0; }

bool LeaveStopFile(const std::string& run_dir) {
  std::ofstream file(StopPath(run_dir));
  file << "stop\n";
  return static_cast<bool>(file.flush());
}

void RemoveStopFile(const std::string& run_dir) { ::unlink(StopPath(run_dir).c_str()); }

double AllocationSecondsLeft() {
  const char* end = std::getenv("SLURM_JOB_END_TIME");
  double seconds = 0;
  if (end == nullptr || !absl::SimpleAtod(end, &seconds)) return -1;
  return std::max(0.0, seconds - absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
}

}  // namespace shoal
