#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "comm/group_communicator.h"
#include "comm/mpi_transport.h"
#include "comm/world.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// The launcher's own count of ranks; 0 when it says none.
int LauncherCount(std::string* variable) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"}) {
    const char* value = std::getenv(name);
    int count = 0;
    if (value == nullptr || !absl::SimpleAtoi(value, &count)) continue;
    // Inside an allocation Slurm's variables are there for a plain program too; a step that is one task is no launch.
    if (count > 1 || std::string(name) != "SLURM_STEP_NUM_TASKS") {
      *variable = name;
      return count;
    }
  }
  return 0;
}

bool Initialised() {
  int flag = 0;
  MPI_Initialized(&flag);
  return flag != 0;
}

}  // namespace

bool UnderMpiLauncher() {
  std::string variable;
  return LauncherCount(&variable) > 0 || std::getenv("PMIX_RANK") != nullptr;
}

absl::StatusOr<std::unique_ptr<Communicator>> MpiWorld(const CommOptions& options) {
  if (!Initialised()) {
    int provided = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS)
      return EnvironmentError("MPI_Init_thread failed");
    if (provided < MPI_THREAD_MULTIPLE)
      return EnvironmentError("this MPI gives no MPI_THREAD_MULTIPLE; use an Open MPI built with it (Debian's is)");
  }
  auto transport = MakeMpiTransport(options.segment_bytes);
  const int rank = transport->rank(), size = transport->size();
  std::string variable;
  const int launched = LauncherCount(&variable);
  if (launched > size) {
    return EnvironmentError(absl::StrCat("the launcher started ", launched, " ranks (", variable,
                                         "), but this program's MPI sees ", size,
                                         ". They do not fit together: under Slurm use `srun --mpi=pmix`, otherwise the "
                                         "mpirun of the Open MPI that Shoal was built with"));
  }
  std::unique_ptr<FlightRecorder> recorder;
  if (!options.flight_dir.empty()) {
    SHOAL_ASSIGN_OR_RETURN(recorder,
                           FlightRecorder::Open(absl::StrCat(options.flight_dir, "/rank-", rank, ".ring"), rank, size));
  }
  std::vector<int> members(size);
  std::iota(members.begin(), members.end(), 0);
  auto engine = std::make_shared<Engine>(std::move(transport), std::move(recorder));
  return std::unique_ptr<Communicator>(
      std::make_unique<GroupCommunicator>(std::move(engine), std::move(members), rank, 0, "world", options));
}

std::string MpiLibraryVersion() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  // "Open MPI v4.1.4, package: ..."
  std::string version(text, static_cast<size_t>(length));
  version = version.substr(0, version.find(','));
  const size_t v = version.find(" v");
  return v == std::string::npos ? version : version.erase(v + 1, 1);
}

void FinalizeMpi() {
  if (Initialised()) MPI_Finalize();
}

void AbortJob(int exit_code) {
  std::cout.flush();
  std::cerr.flush();
  if (Initialised()) {
    // MPI_Abort itself may hang on a broken network; the process ends all the same.
    std::thread([exit_code] { MPI_Abort(MPI_COMM_WORLD, exit_code); }).detach();
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  ::_exit(exit_code);
}

}  // namespace shoal
