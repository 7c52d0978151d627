// The commands of the program: what the command line gave, and what runs. Every function returns the exit code.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launch/experiment/sweep.h"
#include "launch/launcher.h"
#include "launch/trainer.h"
#include "parallel/checkpoint/checkpoint_reader.h"

namespace shoal {

struct JobArgs {
  std::string job;  // path
  std::vector<std::string> sets;
};

struct TrainArgs {
  JobArgs job;
  std::string run_dir;  // empty: runs/<name>
  int local_ranks = 0;  // 0: the launcher's, or one
  std::vector<std::string> resume_with;
  ResetOptimizer reset_optimizer = ResetOptimizer::kNo;
};
int RunTrain(const TrainArgs& args);
int RunValidate(const JobArgs& args);
int RunPlan(const JobArgs& args, int ranks);

// Prints the mpirun line or the Slurm script of a job; with kRun runs the former.
enum class LaunchMode { kPrintMpirun, kRunMpirun, kPrintSlurm };
int RunLaunch(LaunchArgs args, LaunchMode mode);

struct SampleArgs {
  std::string run;  // run directory or checkpoint
  std::optional<std::string> prompt;
  std::optional<int> tokens, top_k;
  std::optional<double> temperature, top_p;
  std::optional<uint64_t> seed;
  Weights weights = Weights::kAverages;
};
int RunSample(const SampleArgs& args);
int RunEval(const std::string& run, int64_t max_tokens, Weights weights);

struct ExperimentArgs {
  SweepArgs sweep;
  std::string run;                // of kRunOne: number or name
  int minutes = 60, threads = 1;  // of kPrintSlurm: limit of a run; cores per rank where the job does not say
};
// Runs what is unfinished or changed; or one run, for a task of a job array; prints that array's sbatch script; lists
// the runs; writes the results of what is finished.
enum class ExperimentMode : uint8_t { kRun, kRunOne, kPrintSlurm, kList, kCollect };
int RunExperiment(const ExperimentArgs& args, ExperimentMode mode);

struct CalibrateArgs {
  int threads = 0;               // 0: as a job that names none
  int local_ranks = 0;           // 0: the launcher's, or one
  std::string compute = "AUTO";  // AUTO, FP32 or BF16
  std::string out;               // empty: CalibrationPath()
};
int RunCalibrate(CalibrateArgs args);

int RunDataBuild(const std::vector<std::string>& inputs, const std::string& out, const std::string& split);
int RunDataInfo(const std::string& path);
// kSpectra: hidden matrices alone; of several runs how they grow with the width.
enum class InspectMode : uint8_t { kTensors, kSpectra };
int RunInspect(const std::vector<std::string>& runs, InspectMode mode);
int RunDiff(const std::string& a, const std::string& b);
int RunConvert(const std::string& from, const std::string& to, Weights weights);
// Empty `out`: report.html of the run, or beside the first of several.
int RunReport(std::vector<std::string> runs, std::string out);
int RunStop(const std::string& run);
int RunWhyHang(const std::string& run);
int RunDoctor();

struct BenchArgs {
  std::string what;  // as launch/main.cc lists them
  JobArgs job;
  int threads = 2, warmup = 2, steps = 5;
  int64_t tokens = 16384, heads = 1, head_size = 64;
  std::string kind = "adamw";         // of optimizer
  std::string codec;                  // of codec; empty: every codec
  std::vector<std::string> turns;     // of step: codecs that a compression plan takes turns with
  std::optional<int64_t> parameters;  // of optimizer (100 million) and codec (16 Mi)
  std::string
      folder;  // of checkpoint and tracing; empty: bench-<what>. Of parity: data. Of images: likewise; empty: made up
};
int RunBench(const BenchArgs& args);
// bench images: CPU time per image, and images per second through the loader's threads, of `folder`'s data.
int RunBenchImages(const BenchArgs& args);
// bench conv: every distinct convolution of the job's ResNet, the fastest of `steps` calls by each way to compute it.
int RunBenchConv(const BenchArgs& args);

// bench probe. JSON: "gflops" is the better of "onednn" and "openblas", null where a library is absent.
int RunProbe(int threads);

// Prints `status` to stderr and returns its exit code.
int Fail(const absl::Status& status);

}  // namespace shoal
