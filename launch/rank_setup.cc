#include "launch/rank_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/config_loader.h"
#include "launch/run_dir.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

cpu_set_t AffinityMask() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  ::sched_getaffinity(0, sizeof(mask), &mask);
  return mask;
}

}  // namespace

int UsableCores() {
  const cpu_set_t mask = AffinityMask();
  return std::max(1, CPU_COUNT(&mask));
}

absl::StatusOr<RankContext> MakeRankContext(Communicator& world, const config::Job& job, std::string* warning) {
  const cpu_set_t mask = AffinityMask();
  std::string cores;
  for (int c = 0; c < CPU_SETSIZE; ++c) {
    if (CPU_ISSET(c, &mask)) absl::StrAppend(&cores, c, ",");
  }
  const int count = UsableCores();
  SHOAL_ASSIGN_OR_RETURN(const auto masks,
                         AllGatherStrings(world, absl::StrCat(HostName(), " ", cores), {.tag = "affinity"}));
  const auto sharing =
      static_cast<int>(std::count(masks.begin(), masks.end(), masks[static_cast<size_t>(world.rank())]));
  const int machine = static_cast<int>(std::thread::hardware_concurrency());
  int threads = std::max(1, count / sharing);
  if (job.runtime().has_threads_per_rank()) {
    threads = job.runtime().threads_per_rank();
    if (threads > count) {
      return absl::InvalidArgumentError(
          absl::StrCat("runtime.threads_per_rank is ", threads, ", but rank ", world.rank(), " may use ", count, " of ",
                       machine, " cores. With mpirun add --bind-to none (or --map-by slot:PE=", threads,
                       "), with srun --cpus-per-task=", threads));
    }
  } else if (count == 1 && machine > 1 && world.size() < machine) {
    *warning = absl::StrCat(
        "warning: this rank may use 1 of ", machine,
        " cores; mpirun binds ranks to one core unless told otherwise: add --bind-to none or --map-by slot:PE=k");
  }
  RankContext context;
  context.rank = world.rank();
  context.size = world.size();
  context.host = HostName();
  context.pool = std::make_unique<ThreadPool>(threads);
  return context;
}

absl::Status CheckRanksFitTogether(Communicator& world, const config::Job& job, const std::string& run_dir) {
  SHOAL_RETURN_IF_ERROR(CheckEqualOnAllRanks(world, "build", BuildId(), {.tag = "build"}));
  SHOAL_RETURN_IF_ERROR(CheckEqualOnAllRanks(world, "job", JobText(job), {.tag = "job"}));
  if (world.size() == 1) return absl::OkStatus();
  const std::string probe = absl::StrCat(run_dir, "/.shared-", ::getpid());
  std::string name;
  if (world.rank() == 0) {
    SHOAL_RETURN_IF_ERROR(WriteFileAtomically(PosixFiles(), probe, "shared\n"));
    name = probe;
  }
  SHOAL_ASSIGN_OR_RETURN(name, BroadcastString(world, name, 0, {.tag = "shared run directory"}));
  SHOAL_ASSIGN_OR_RETURN(const auto sees, AllGatherStrings(world, PosixFiles().Exists(name) ? "" : HostName(),
                                                           {.tag = "shared run directory"}));
  if (world.rank() == 0) PosixFiles().RemoveAll(probe).IgnoreError();
  std::vector<std::string> blind;
  for (size_t r = 0; r < sees.size(); ++r) {
    if (!sees[r].empty()) blind.push_back(absl::StrCat("rank ", r, " on ", sees[r]));
  }
  if (blind.empty()) return absl::OkStatus();
  return EnvironmentError(
      absl::StrCat("run directory ", run_dir, " is not shared: ", absl::StrJoin(blind, ", "),
                   " do not see what rank 0 wrote there. Put --run_dir on a file system that all nodes mount"));
}

}  // namespace shoal
