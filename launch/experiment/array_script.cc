#include "launch/experiment/array_script.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "launch/launcher.h"

namespace shoal {
namespace {

std::string ExperimentCommand(const Sweep& sweep, const SweepArgs& args, const std::string& program) {
  std::string command = absl::StrCat(ShellQuoted(program), " experiment ", ShellQuoted(args.file), " --folder ",
                                     ShellQuoted(sweep.folder));
  for (const std::string& set : args.sets) absl::StrAppend(&command, " --set ", ShellQuoted(set));
  for (const std::string& override : args.overrides) absl::StrAppend(&command, " --sweep ", ShellQuoted(override));
  for (const std::string& point : args.points) absl::StrAppend(&command, " --point ", ShellQuoted(point));
  return command;
}

}  // namespace

std::string SlurmArrayScript(const Sweep& sweep, const SweepArgs& args, const std::vector<const SweepRun*>& runs,
                             const ArrayOptions& options) {
  int ranks = 1, threads = 1;
  std::string names;
  for (const SweepRun* run : runs) {
    const auto& runtime = run->resolved.runtime();
    ranks = std::max(ranks, run->ranks);
    threads = std::max(threads, runtime.has_threads_per_rank() ? runtime.threads_per_rank() : options.threads);
    absl::StrAppend(&names, "  ", ShellQuoted(run->name), "\n");
  }
  const bool processes = sweep.config.launcher() != config::Experiment::LOCAL_RANKS;
  const std::string command = ExperimentCommand(sweep, args, options.program);
  const std::string at_once = sweep.config.has_jobs_at_once() ? absl::StrCat("%", sweep.config.jobs_at_once()) : "";
  return BatchText({.options = {absl::StrCat("--job-name=", ShellQuoted(sweep.config.name())),
                                absl::StrCat("--array=0-", runs.size() - 1, at_once), "--nodes=1",
                                absl::StrCat("--ntasks=", processes ? ranks : 1),
                                absl::StrCat("--cpus-per-task=", processes ? threads : ranks * threads),
                                absl::StrCat("--time=", options.minutes)},
                    .prelude = absl::StrCat("# When all tasks have ended: ", command, " --collect\nnames=(\n", names,
                                            ")\nname=${names[$SLURM_ARRAY_TASK_ID]}\nrun=",
                                            ShellQuoted(sweep.folder + "/runs"), "/$name\n"),
                    .command = command + " --run \"$name\"",
                    .requeues = options.requeues});
}

}  // namespace shoal
