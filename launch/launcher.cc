#include "launch/launcher.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

std::string Quoted(const std::string& word) {
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string TrainCommand(const LaunchArgs& args) {
  std::string command =
      absl::StrCat(Quoted(args.program), " train ", Quoted(args.job), " --run_dir ", Quoted(args.run_dir));
  for (const std::string& set : args.sets) absl::StrAppend(&command, " --set ", Quoted(set));
  return command;
}

}  // namespace

std::string MpirunLine(const LaunchArgs& args) {
  const std::string binding = args.threads > 1 ? absl::StrCat("--map-by slot:PE=", args.threads) : "--bind-to none";
  return absl::StrCat("mpirun -n ", args.ranks, " ", binding, " ", TrainCommand(args));
}

std::string SlurmScript(const LaunchArgs& args) {
  return absl::StrCat("#!/usr/bin/env bash\n#SBATCH --job-name=shoal\n#SBATCH --nodes=", args.nodes,
                      "\n#SBATCH --ntasks=", args.ranks, "\n#SBATCH --cpus-per-task=", args.threads,
                      "\n#SBATCH --time=", args.minutes,
                      "\n#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n#SBATCH --open-mode=append\n", R"(run=)",
                      Quoted(args.run_dir), R"sh(
# Slurm before 23.02 does not say when the allocation ends.
export SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s)}
srun --mpi=pmix )sh",
                      TrainCommand(args), R"( &
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
                      args.requeues, R"( ]; then
      echo $((tries + 1)) >"$run/requeues"
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit $code
)");
}

}  // namespace shoal
