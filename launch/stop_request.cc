#include "launch/stop_request.h"

#include <unistd.h>

#include <csignal>
#include <fstream>

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

}  // namespace shoal
