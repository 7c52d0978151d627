// A run of a sweep as a process of its own.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

class ChildProcess {
 public:
  // Starts `command` (the program's path and its arguments) in a process group of its own, so that a terminal's Ctrl-C
  // reaches the sweep alone; its output is added to the file `log`. When the calling thread dies, however it does, the
  // child gets SIGUSR1, upon which a run saves and stops.
  static absl::StatusOr<ChildProcess> Start(const std::vector<std::string>& command, const std::string& log);

  // Its exit code (128 + signal, as in a shell) once it has ended; does not wait.
  std::optional<int> Ended();
  void Signal(int signal) const;

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
  std::optional<int> code_;
};

}  // namespace shoal
