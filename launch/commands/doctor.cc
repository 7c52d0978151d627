#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/commands.h"
#include "launch/run_dir.h"
#include "runtime/base/memory.h"
#include "runtime/base/str.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/dispatch.h"

namespace shoal {
namespace {

bool OnPath(const char* program) {
  const char* path = std::getenv("PATH");
  std::string all = path != nullptr ? path : "";
  for (size_t at = 0; at <= all.size();) {
    const size_t end = std::min(all.find(':', at), all.size());
    if (::access((all.substr(at, end - at) + "/" + program).c_str(), X_OK) == 0) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace

int RunDoctor() {
  int missing = 0;
  const auto say = [](const char* what, const std::string& value) {
    std::cout << absl::StrFormat("%-22s %s\n", what, value);
  };
  cpu_set_t mask;
  CPU_ZERO(&mask);
  ::sched_getaffinity(0, sizeof(mask), &mask);
  say("build", BuildId());
  say("cores",
      absl::StrFormat("%d usable of %d", CPU_COUNT(&mask), static_cast<int>(std::thread::hardware_concurrency())));
  say("instruction set", HostCpu().isa + ", kernels for " + cpu::DispatchTarget());
  say("memory available", HumanBytes(static_cast<double>(AvailableBytes())));
  say("oneDNN", cpu::OneDnnVersion());
  if (OnPath("mpirun")) {
    say("mpirun", "found");
  } else {
    ++missing;
    say("mpirun", "MISSING: install openmpi-bin (4.1 or newer); --local_ranks works without it");
  }
  say("launched by", UnderMpiLauncher() ? "mpirun or srun" : "nobody: one process");
  say("GPU", "this build has no CUDA back end; it trains on CPU");
  return missing == 0 ? 0 : 7;
}

}  // namespace shoal
