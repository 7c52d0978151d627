// How a process's ranks come into being: under mpirun/srun (one rank per process), as threads of one process, or as one
// fake rank of N.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "comm/communicator.h"

namespace shoal {

struct CommOptions {
  absl::Duration deadline = absl::Minutes(5);  // of calls that name none
  std::string flight_dir;                      // where rank-N.ring files go; empty: no flight record
  // Cross-rank check of (sequence, op, dtype, count, tag) before every collective: a mismatch is an error that names
  // both.
  enum class Check : uint8_t { kOff, kOn } check = Check::kOff;
  int64_t segment_bytes = 1 << 20;          // messages move in segments of at most this many bytes
  double thread_link_bytes_per_second = 0;  // thread ranks: as if each had a link of this rate, each way; 0: memory
};

// Runs body(rank, world communicator) on `ranks` threads of this process and returns the first non-OK status by rank.
// A rank that returns an error aborts the world, so that its peers fail fast instead of waiting.
absl::Status RunThreadRanks(int ranks, const CommOptions& options,
                            const std::function<absl::Status(int rank, Communicator& world)>& body);

// The world of this process under MPI. Initialises MPI (MPI_THREAD_MULTIPLE) on first use; call once per process.
// Environment errors name what is wrong (a launcher whose count exceeds MPI's world is refused here) and how to launch
// properly.
absl::StatusOr<std::unique_ptr<Communicator>> MpiWorld(const CommOptions& options);
// Whether the environment says that a launcher started this process (OMPI_COMM_WORLD_SIZE, PMI_SIZE, PMIX_RANK,
// SLURM_STEP_NUM_TASKS > 1 ...).
bool UnderMpiLauncher();
// "Open MPI 4.1.4": of the library that this process has loaded. MPI need not be initialised.
std::string MpiLibraryVersion();
// Clean end of MPI after success; never called after a communicator failed.
void FinalizeMpi();
// Ends the whole job after an error: flight record written, MPI_Abort(code), _exit(code) if still alive after 1 s. Does
// not return under MPI.
void AbortJob(int exit_code);

// Rank `rank` of `size`, alone: every collective completes at once, or once its `after` is done, and leaves plausible
// data (own contribution). For dry runs and for measuring a step without communication.
std::unique_ptr<Communicator> FakeWorld(int rank, int size);

}  // namespace shoal
