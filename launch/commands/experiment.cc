// experiment: a sweep here, as a Slurm job array, or its results.
#include <cmath>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "launch/commands.h"
#include "launch/experiment/array_script.h"
#include "launch/experiment/local_sweep.h"
#include "launch/experiment/results.h"
#include "launch/experiment/sweep_plot.h"
#include "launch/folder_lock.h"
#include "launch/launcher.h"
#include "launch/rank_setup.h"
#include "launch/stop_request.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

// What happens to one sweep in this process.
class Session {
 public:
  Session(Sweep sweep, ExperimentArgs args) : sweep_(std::move(sweep)), args_(std::move(args)) {
    for (const SweepRun& run : sweep_.runs) results_.push_back(ReadResult(sweep_, run));
  }

  std::vector<const SweepRun*> Left() const {
    std::vector<const SweepRun*> left;
    for (size_t i = 0; i < results_.size(); ++i) {
      if (!Settled(results_[i].state)) left.push_back(&sweep_.runs[i]);
    }
    return left;
  }

  int List() const {
    for (size_t i = 0; i < results_.size(); ++i)
      std::cout << absl::StrFormat("%4d  %-10s  %s\n", sweep_.runs[i].number, Text(results_[i].state),
                                   sweep_.runs[i].name);
    return 0;
  }

  int PrintSlurm() const {
    const auto left = Left();
    if (left.empty()) {
      std::cerr << "all " << sweep_.runs.size() << " runs of " << sweep_.folder
                << " have ended; nothing is left for Slurm\n";
      return 0;
    }
    std::cout << SlurmArrayScript(sweep_, args_.sweep, left,
                                  {.program = ProgramPath(), .threads = args_.threads, .minutes = args_.minutes});
    return 0;
  }

  absl::StatusOr<int> RunAll() {
    SHOAL_ASSIGN_OR_RETURN(const auto planned, PlanRuns(sweep_, Left(), UsableCores()));
    std::cout << sweep_.folder << ": " << sweep_.runs.size() << " runs, "
              << (planned.empty() ? "all have ended"
                                  : absl::StrCat(planned.size(), " to do; to stop: Ctrl-C, and what runs saves"))
              << std::endl;
    const int code = Run(planned, UsableCores());
    SHOAL_RETURN_IF_ERROR(WriteResults());
    if (StopSignalled()) std::cout << "stopped; " << Left().size() << " runs are left, the same command goes on\n";
    return code;
  }

  // For a task of a job array: other tasks write in the folder too, so only the run itself is locked, by its trainer.
  absl::StatusOr<int> RunOne() {
    for (size_t i = 0; i < sweep_.runs.size(); ++i) {
      const SweepRun& run = sweep_.runs[i];
      if (args_.run != run.name && args_.run != absl::StrCat(run.number)) continue;
      if (Settled(results_[i].state)) {
        std::cout << run.name << " has " << Text(results_[i].state) << " already\n";
        return 0;
      }
      return Run({{&run, 0, 1}}, 1);
    }
    return absl::InvalidArgumentError(
        absl::StrCat("'", args_.run, "' is no run of ", args_.sweep.file, "; --list names all ", sweep_.runs.size()));
  }

  absl::StatusOr<int> Collect() {
    SHOAL_RETURN_IF_ERROR(WriteResults());
    return 0;
  }

 private:
  int Run(const std::vector<PlannedRun>& planned, int cores) {
    int first_failure = 0;
    size_t ended = 0;
    const double started = SteadySeconds();
    RunHere(sweep_, planned, cores, ProgramPath(), [&](const RunEnd& end) {
      ++ended;
      RunResult& result = results_[static_cast<size_t>(end.run->number) - 1];
      result = ReadResult(sweep_, *end.run);
      const bool failed = end.code != 0 && result.state != RunState::kDiverged && !StopSignalled();
      if (failed && first_failure == 0) first_failure = end.code;
      if (!end.moved.empty())
        std::cout << end.run->name << " was run with another job before; that run is " << end.moved << " now\n";
      const double per_run = (SteadySeconds() - started) / static_cast<double>(ended);
      std::cout << absl::StrFormat("[%d/%d] %s | %s | %.2f s | ETA %s", ended, planned.size(), end.run->name,
                                   What(end, result), end.seconds,
                                   HumanDuration(per_run * static_cast<double>(planned.size() - ended)))
                << std::endl;
      if (args_.run.empty())
        WriteFileAtomically(PosixFiles(), sweep_.folder + "/results.csv", ResultsCsv(sweep_, results_)).IgnoreError();
    });
    return first_failure;
  }

  // How a run ended, in words.
  std::string What(const RunEnd& end, const RunResult& result) const {
    const config::Metric metric = sweep_.config.metric();
    const double value = MetricValue(metric, result.summary);
    if (!end.start.ok()) return absl::StrCat("FAILED: ", end.start.message());
    if (result.state == RunState::kFinished && std::isfinite(value))
      return absl::StrFormat("%s %.5g", MetricName(metric), value);
    if (result.state == RunState::kFinished) return absl::StrCat("finished without ", MetricName(metric));
    const std::string state = StatusOf(sweep_, *end.run).detail;
    if (result.state == RunState::kDiverged) return absl::StrCat("DIVERGED by step ", result.summary.steps);
    if (result.state == RunState::kStopped) return state;
    if (StopSignalled()) return "stopped before its first step";
    return absl::StrCat("FAILED (exit ", end.code,
                        "): ", state.empty() ? "it says no state" : absl::StripPrefix(state, "failed: "), "; see ",
                        sweep_.RunDir(*end.run), "/logs/console.log");
  }

  // results.csv, results.svg, and the table on the console.
  absl::Status WriteResults() const {
    const auto cells = Cells(sweep_, results_);
    SHOAL_RETURN_IF_ERROR(
        WriteFileAtomically(PosixFiles(), sweep_.folder + "/results.csv", ResultsCsv(sweep_, results_)));
    SHOAL_RETURN_IF_ERROR(WriteFileAtomically(PosixFiles(), sweep_.folder + "/results.svg", PlotSweep(sweep_, cells)));
    std::cout << ResultsTable(sweep_, cells) << sweep_.folder << "/results.csv\n"
              << sweep_.folder << "/results.svg\n"
              << "next: shoal report " << sweep_.folder << "/runs/*/\n";
    return absl::OkStatus();
  }

  const Sweep sweep_;
  const ExperimentArgs args_;
  std::vector<RunResult> results_;  // of sweep_.runs
};

// Tasks of a job array write in the folder side by side; what reads or writes all of it has it alone.
absl::StatusOr<std::unique_ptr<FolderLock>> LockFolder(const Sweep& sweep, ExperimentMode mode) {
  if (mode != ExperimentMode::kRun && mode != ExperimentMode::kCollect) return nullptr;
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(sweep.folder));
  return FolderLock::Take(sweep.folder,
                          {"sweep folder", "Wait for that sweep, stop it with SIGTERM, or choose another --folder"});
}

absl::StatusOr<int> RunMode(const ExperimentArgs& args, ExperimentMode mode) {
  SHOAL_ASSIGN_OR_RETURN(Sweep sweep, LoadSweep(args.sweep));
  if (mode == ExperimentMode::kRun || mode == ExperimentMode::kRunOne) InstallStopSignals(DirectSignals::kHandle);
  SHOAL_ASSIGN_OR_RETURN(const auto lock, LockFolder(sweep, mode));
  Session session(std::move(sweep), args);
  switch (mode) {
    case ExperimentMode::kRun:
      return session.RunAll();
    case ExperimentMode::kRunOne:
      return session.RunOne();
    case ExperimentMode::kPrintSlurm:
      return session.PrintSlurm();
    case ExperimentMode::kList:
      return session.List();
    case ExperimentMode::kCollect:
      return session.Collect();
  }
  return 0;
}

}  // namespace

int RunExperiment(const ExperimentArgs& args, ExperimentMode mode) {
  const auto code = RunMode(args, mode);
  return code.ok() ? *code : Fail(code.status());
}

}  // namespace shoal
