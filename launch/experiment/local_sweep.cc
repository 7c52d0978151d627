#include "launch/experiment/local_sweep.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "launch/config_loader.h"
#include "launch/experiment/child_process.h"
#include "launch/experiment/run_status.h"
#include "launch/folder_lock.h"
#include "launch/stop_request.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr double kLockPatience = 60, kRemind = 0.5;  // seconds

void Nap() { std::this_thread::sleep_for(std::chrono::milliseconds(10)); }

// Waits until nobody writes in `run_dir`.
absl::Status AwaitLock(const std::string& run_dir) {
  const double give_up = SteadySeconds() + kLockPatience;
  while (const auto holder = FolderLock::Holder(run_dir)) {
    if (SteadySeconds() > give_up || StopSignalled())
      return EnvironmentError(absl::StrCat(run_dir, " is in use by ", *holder));
    Nap();
  }
  return absl::OkStatus();
}

// Makes a run's directory and job file; a directory of another job gives way.
absl::Status Prepare(const Sweep& sweep, const PlannedRun& planned, std::string* moved) {
  const SweepRun& run = *planned.run;
  const std::string run_dir = sweep.RunDir(run);
  SHOAL_RETURN_IF_ERROR(AwaitLock(run_dir));
  if (StatusOf(sweep, run).state == RunState::kChanged) {
    SHOAL_ASSIGN_OR_RETURN(*moved, MoveAside(sweep, run));
  }
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(run_dir + "/logs"));
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(sweep.folder + "/jobs"));
  config::Job job = run.job;
  if (planned.threads > 0) job.mutable_runtime()->set_threads_per_rank(planned.threads);
  return WriteFileAtomically(PosixFiles(), sweep.JobFile(run), JobText(job));
}

struct Active {
  PlannedRun planned;
  ChildProcess process;
  double started, reminded = 0;
  RunEnd end;
};

// The signal reaches what starts or waits, the file what a launcher keeps signals from.
void AskToStop(const Sweep& sweep, Active& active) {
  const double now = SteadySeconds();
  if (active.reminded == 0) active.process.Signal(SIGUSR1);
  if (now - active.reminded < kRemind) return;
  active.reminded = now;
  LeaveStopFile(sweep.RunDir(*active.planned.run));
}

}  // namespace

std::vector<std::string> RunCommand(const Sweep& sweep, const SweepRun& run, const std::string& program) {
  std::vector<std::string> command;
  if (sweep.config.launcher() == config::Experiment::MPIRUN)
    command = {"mpirun", "-n", absl::StrCat(run.ranks), "--bind-to",
               "none"};  // several mpiruns would bind the same cores
  if (sweep.config.launcher() == config::Experiment::SRUN)
    command = {"srun", "-n", absl::StrCat(run.ranks), "--mpi=pmix"};
  for (const std::string& word :
       {program, std::string("train"), sweep.JobFile(run), std::string("--run_dir"), sweep.RunDir(run)})
    command.push_back(word);
  if (sweep.config.launcher() == config::Experiment::LOCAL_RANKS)
    command.push_back(absl::StrCat("--local_ranks=", run.ranks));
  return command;
}

absl::StatusOr<std::vector<PlannedRun>> PlanRuns(const Sweep& sweep, const std::vector<const SweepRun*>& runs,
                                                 int cores) {
  const int at_once = sweep.config.jobs_at_once();  // 0: unset
  std::vector<PlannedRun> planned;
  int least = cores;
  for (const SweepRun* run : runs) {
    PlannedRun p{run, 0, cores};
    const auto& runtime = run->resolved.runtime();
    if (runtime.has_threads_per_rank()) {
      p.cores = std::min(cores, run->ranks * runtime.threads_per_rank());
    } else if (at_once > 1) {
      p.threads = std::max(1, cores / (at_once * run->ranks));
      p.cores = std::min(cores, run->ranks * p.threads);
    }
    least = std::min(least, p.cores);
    planned.push_back(p);
  }
  if (at_once > 1 && !runs.empty() && at_once * least > cores) {
    return absl::InvalidArgumentError(absl::StrCat("jobs_at_once is ", at_once, ", a run takes ", least,
                                                   " of this machine's ", cores,
                                                   " cores or more; nearest valid: ", std::max(1, cores / least)));
  }
  return planned;
}

void RunHere(const Sweep& sweep, const std::vector<PlannedRun>& planned, int cores, const std::string& program,
             absl::FunctionRef<void(const RunEnd&)> on_end) {
  const size_t most =
      sweep.config.has_jobs_at_once() ? static_cast<size_t>(sweep.config.jobs_at_once()) : planned.size();
  std::vector<Active> active;
  size_t next = 0;
  int used = 0;
  while (!active.empty() || (next < planned.size() && !StopSignalled())) {
    while (next < planned.size() && !StopSignalled() && active.size() < most &&
           (active.empty() || used + planned[next].cores <= cores)) {
      const PlannedRun& p = planned[next++];
      RunEnd end{.run = p.run};
      end.start = Prepare(sweep, p, &end.moved);
      if (end.start.ok()) {
        auto process =
            ChildProcess::Start(RunCommand(sweep, *p.run, program), sweep.RunDir(*p.run) + "/logs/console.log");
        end.start = process.status();
        if (process.ok()) {
          used += p.cores;
          active.push_back({p, *std::move(process), SteadySeconds(), 0, end});
          continue;
        }
      }
      if (StopSignalled()) break;  // while it waited for another process
      end.code = static_cast<int>(ExitCodeFor(end.start));
      on_end(end);
    }
    for (auto at = active.begin(); at != active.end();) {
      const auto code = at->process.Ended();
      if (!code.has_value()) {
        if (StopSignalled()) AskToStop(sweep, *at);
        ++at;
        continue;
      }
      used -= at->planned.cores;
      RunEnd end = std::move(at->end);
      end.code = *code;
      end.seconds = SteadySeconds() - at->started;
      RemoveStopFile(sweep.RunDir(*end.run));
      at = active.erase(at);
      on_end(end);
    }
    Nap();
  }
}

}  // namespace shoal
