#include "launch/launcher.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

std::string TrainCommand(const LaunchArgs& args) {
  std::string command = absl::StrCat(ShellQuoted(args.program), " train ", ShellQuoted(args.job), " --run_dir ",
                                     ShellQuoted(args.run_dir));
  for (const std::string& set : args.sets) absl::StrAppend(&command, " --set ", ShellQuoted(set));
  return command;
}

}  // namespace

std::string MpirunLine(const LaunchArgs& args) {
  const std::string binding = args.threads > 1 ? absl::StrCat("--map-by slot:PE=", args.threads) : "--bind-to none";
  return absl::StrCat("mpirun -n ", args.ranks, " ", binding, " ", TrainCommand(args));
}

std::string SlurmScript(const LaunchArgs& args) {
  return BatchText(
      {.options = {"--job-name=shoal", absl::StrCat("--nodes=", args.nodes), absl::StrCat("--ntasks=", args.ranks),
                   absl::StrCat("--cpus-per-task=", args.threads), absl::StrCat("--time=", args.minutes)},
       .prelude = absl::StrCat("run=", ShellQuoted(args.run_dir), "\n"),
       .command = "srun --mpi=pmix " + TrainCommand(args),
       .requeues = args.requeues});
}

std::string BatchText(const BatchScript& script) {
  std::string text = "#!/usr/bin/env bash\n";
  for (const std::string& option : script.options) absl::StrAppend(&text, "#SBATCH ", option, "\n");
  absl::StrAppend(&text, "#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n#SBATCH --open-mode=append\n", script.prelude,
                  R"sh(# Slurm before 23.02 does not say when the allocation ends.
export SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s)}
)sh",
                  script.command, R"( &
step=$!
# Two minutes before the limit Slurm sends USR1 here; the run saves at its next step boundary and ends with exit 0.
trap 'touch "$run/stop"' USR1
wait $step; code=$?
while kill -0 $step 2>/dev/null; do wait $step; code=$?; done
state=$(cat "$run/state" 2>/dev/null)
case $state in
  stopped*) scontrol requeue "$SLURM_JOB_ID" ;;
  failed*)
    tries=$(cat "$run/requeues" 2>/dev/null || echo 0)
    if [ $code -eq 4 ] && [ "$tries" -lt )",
                  script.requeues, R"( ]; then
      echo $((tries + 1)) >"$run/requeues"
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit $code
)");
  return text;
}

std::string ShellQuoted(const std::string& word) {
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string ProgramPath() {
  char path[4096] = {};
  return ::readlink("/proc/self/exe", path, sizeof(path) - 1) > 0 ? path : "shoal";
}

}  // namespace shoal
