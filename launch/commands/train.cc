#include <unistd.h>

#include <chrono>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "comm/world.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/rank_setup.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/stop_request.h"
#include "launch/trainer.h"
#include "runtime/base/status.h"
#include "runtime/ops/dispatch.h"

namespace shoal {
namespace {

CommOptions CommOptionsOf(const config::Job& job, const std::string& run_dir) {
  CommOptions options;
  options.deadline = absl::Seconds(job.comm().deadline_seconds());
  options.flight_dir = run_dir + "/flight";
  options.thread_link_bytes_per_second = job.comm().thread_link_mbit() * 1e6 / 8;
  options.check = job.comm().check_calls() ? CommOptions::Check::kOn : CommOptions::Check::kOff;
  return options;
}

// Where debuggers come in: the rank waits until one has set `go`.
void WaitForDebugger(const config::Job& job, int rank) {
  if (job.debug().wait_for_debugger() != rank) return;
  volatile bool go = false;
  std::cerr << "rank " << rank << " waits: gdb -p " << ::getpid()
            << ", then in this frame `set var go = 1` and `continue`" << std::endl;
  while (!go) std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

// Rank 0's part before training: lock, resume check, files.
absl::StatusOr<std::unique_ptr<RunDir>> PrepareRunDir(const TrainArgs& args, WeakestHost weakest,
                                                      const std::string& path, config::Job& job, std::string& reason) {
  SHOAL_ASSIGN_OR_RETURN(auto run, RunDir::Open(path));
  config::Job before;
  SHOAL_ASSIGN_OR_RETURN(const bool resumes, run->ReadJob(&before));
  // A run keeps the type that it started with, on whatever hosts it resumes.
  if (resumes && job.runtime().compute() == config::RuntimeConfig::AUTO)
    job.mutable_runtime()->set_compute(before.runtime().compute());
  const ComputeChoice choice = SettleCompute(job, weakest);
  job.mutable_runtime()->set_compute(choice.compute);
  reason = choice.reason;
  if (resumes) {
    std::vector<std::string> accepted = args.resume_with;
    if (args.reset_optimizer == ResetOptimizer::kYes) accepted.insert(accepted.end(), {"optim", "optim.kind"});
    const auto changes = ResultChanges(before, job, accepted);
    if (!changes.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "run directory ", path, " was started with another job; fields that affect results differ:\n  ",
          absl::StrJoin(changes, "\n  "), "\nTake another --run_dir, or accept a change with --resume_with FIELD"));
    }
  }
  SHOAL_RETURN_IF_ERROR(run->WriteJob(job));
  RemoveStopFile(path);
  SHOAL_RETURN_IF_ERROR(run->WriteState("running"));
  return run;
}

absl::Status TrainRank(const TrainArgs& args, config::Job job, const std::string& run_dir,
                       const std::string& how_to_stop, Communicator& world) {
  WaitForDebugger(job, world.rank());
  SHOAL_RETURN_IF_ERROR(CheckRanks(job, world.size()));  // before the run directory keeps such a job
  SHOAL_ASSIGN_OR_RETURN(const auto bf16,
                         AllReduceValues(world, {HostPrefersBf16() ? 1.0 : 0.0}, ReduceOp::kMin, {.tag = "bf16"}));
  std::unique_ptr<RunDir> run;
  absl::Status prepared;
  std::string reason;
  if (world.rank() == 0) {
    auto opened =
        PrepareRunDir(args, bf16[0] > 0 ? WeakestHost::kHasBf16 : WeakestHost::kHasNone, run_dir, job, reason);
    prepared = opened.status();
    if (opened.ok()) run = *std::move(opened);
  }
  const bool first = world.rank() == 0;
  SHOAL_ASSIGN_OR_RETURN(const auto ready, AllReduceValues(world,
                                                           {first && prepared.ok() ? 1.0 : 0.0,
                                                            first ? static_cast<double>(job.runtime().compute()) : 0.0},
                                                           ReduceOp::kMax, {.tag = "run directory"}));
  job.mutable_runtime()->set_compute(static_cast<config::RuntimeConfig::Compute>(ready[1]));
  if (ready[0] == 0)
    return world.rank() == 0 ? prepared : absl::UnavailableError("rank 0 could not open the run directory");
  SHOAL_RETURN_IF_ERROR(CheckRanksFitTogether(world, job, run_dir));
  std::string warning;
  SHOAL_ASSIGN_OR_RETURN(RankContext rank, MakeRankContext(world, job, &warning));
  const bool talks = world.rank() == 0;
  if (talks) {
    if (!warning.empty()) std::cout << warning << "\n";
    if (!reason.empty()) std::cout << reason << "\n";
    const std::string compute = job.runtime().compute() == config::RuntimeConfig::BF16 ? "bf16" : "fp32";
    std::cout << "run directory " << run_dir << ", " << world.size() << " ranks x " << rank.pool->threads()
              << " threads, " << compute << "\n"
              << how_to_stop << std::endl;
    SHOAL_RETURN_IF_ERROR(run->WriteEnvironment(world.size(), rank.pool->threads(), compute));
  }
  SHOAL_ASSIGN_OR_RETURN(const auto log, RankLog::Open(run_dir, world.rank()));
  log->Line(absl::StrCat("process ", ::getpid(), " on ", rank.host, ", ", rank.pool->threads(), " threads"));
  TrainerOptions options{.job = job, .run_dir = run_dir, .reset_optimizer = args.reset_optimizer, .log = log.get()};
  const auto outcome = Train(rank, world, options);
  if (!outcome.ok()) log->Line(absl::StrCat("failed: ", outcome.status().message()));
  if (!talks) return outcome.status();
  const std::string state = !outcome.ok() ? absl::StrCat("failed: ", outcome.status().message())
                            : outcome->end == TrainOutcome::End::kFinished
                                ? std::string("finished")
                                : absl::StrCat("stopped at step ", outcome->step);
  const absl::Status written = run->WriteState(state);
  log->Line(state);
  if (!outcome.ok()) return outcome.status();
  std::cout << state << (outcome->end == TrainOutcome::End::kFinished ? absl::StrCat(" at step ", outcome->step) : "")
            << ", loss " << outcome->last_loss << ", held-out loss " << outcome->eval_loss
            << (job.model().has_resnet() ? absl::StrFormat(", accuracy %.2f %%", 100 * outcome->eval_accuracy) : "")
            << "\nnext: shoal report " << run_dir << "; shoal " << (job.model().has_resnet() ? "eval " : "sample ")
            << run_dir << std::endl;
  return written;
}

}  // namespace

int RunTrain(const TrainArgs& args) {
  auto loaded = LoadJob(args.job.job, args.job.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  const bool mpi = args.local_ranks == 0 && UnderMpiLauncher();
  auto job = ResolveJob(*loaded, mpi ? 0 : std::max(1, args.local_ranks));
  if (!job.ok()) return Fail(job.status());
  const std::string run_dir = args.run_dir.empty() ? "runs/" + job->name() : args.run_dir;
  const CommOptions options = CommOptionsOf(*job, run_dir);
  InstallStopSignals(mpi ? DirectSignals::kLeave : DirectSignals::kHandle);
  const std::string how_to_stop =
      absl::StrCat("to stop and save: shoal stop ", run_dir, mpi ? ", or SIGUSR1 to mpirun" : ", or Ctrl-C");
  if (!mpi) {
    if (job->comm().fake()) {
      const auto world = FakeWorld(0, std::max(1, args.local_ranks));
      const absl::Status status = TrainRank(args, *job, run_dir, how_to_stop, *world);
      return status.ok() ? 0 : Fail(status);
    }
    const absl::Status status = RunThreadRanks(std::max(1, args.local_ranks), options, [&](int, Communicator& world) {
      return TrainRank(args, *job, run_dir, how_to_stop, world);
    });
    return status.ok() ? 0 : Fail(status);
  }
  auto world = MpiWorld(options);
  if (!world.ok()) AbortJob(Fail(world.status()));
  if (job->comm().fake()) {
    AbortJob(Fail(absl::InvalidArgumentError(
        "comm.fake is true under mpirun: ranks would train apart. Use it with --local_ranks, or `shoal bench step`")));
  }
  if (const absl::Status status = CheckProcesses(*job); !status.ok()) AbortJob(Fail(status));
  if ((*world)->rank() != 0) OnlyErrorsToStandardError();
  const absl::Status status = TrainRank(args, *job, run_dir, how_to_stop, **world);
  if (!status.ok()) {
    // What all ranks share is said once: rank 0's abort ends the others while they wait.
    if ((*world)->rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    if ((*world)->rank() != 0) std::cerr << "rank " << (*world)->rank() << ": ";
    AbortJob(Fail(status));
  }
  world->reset();
  FinalizeMpi();
  return 0;
}

}  // namespace shoal
