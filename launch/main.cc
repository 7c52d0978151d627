// shoal: the program. Options are read here; what commands do is in launch/commands/.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "launch/commands.h"
#include "launch/commands/plan_cluster.h"
#include "launch/commands/plan_lengths.h"
#include "launch/rank_log.h"
#include "runtime/ops/cpu/openblas_adapter.h"

namespace {

using shoal::JobArgs;

const CLI::Range kCount(1, 1 << 20);                              // of ranks, threads, steps, ..
const CLI::Range kLarge(1, std::numeric_limits<int32_t>::max());  // of tokens, elements

// Flags accept - and _: the name of a flag is read with -, its value stays as it is.
std::vector<std::string> ReadArguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {  // CLI11 takes them from the last to the first
    std::string argument = argv[i];
    if (argument.rfind("--", 0) == 0)
      std::replace(argument.begin(),
                   argument.begin() + static_cast<int64_t>(std::min(argument.find('='), argument.size())), '_', '-');
    arguments.push_back(argument);
  }
  return arguments;
}

CLI::Option* AddJob(CLI::App* app, JobArgs* job) {
  CLI::Option* file = app->add_option("job", job->job, "job file (protobuf text format)")->required();
  app->add_option("--set", job->sets, "override a field: path.to.field=value; may be repeated")
      ->expected(1)
      ->take_all();
  return file;
}

// Of sequence plans, which need no job: lengths, or a cluster file that may name them.
struct PlanArgs {
  JobArgs job;
  std::vector<int> ranks;
  shoal::PlanLengthsArgs lengths;
  std::string cluster, plot;
};

void AddPlan(CLI::App* plan, PlanArgs* args) {
  AddJob(plan, &args->job)->required(false);
  plan->add_option("--ranks", args->ranks, "number of ranks to plan for; of a cluster also several: 8,64,512")
      ->check(kCount)
      ->delimiter(',')
      ->allow_extra_args(false);
  auto* lengths =
      plan->add_option("--lengths", args->lengths.file,
                       "plan sequences instead of a job: a file of lengths, one a line; of quantiles (CSV); or a "
                       "dataset's PREFIX");
  auto* cluster = plan->add_option("--cluster", args->cluster,
                                   "predict steps on the cluster of this file (parallel/cluster.proto, text format)");
  plan->get_option("job")->excludes(lengths)->excludes(cluster);
  plan->add_option("--planner", args->lengths.planner, "only this planner, beside the default; unset: all");
  plan->add_option("--degree", args->lengths.degree, "of planner static; unset: the best")->check(kCount);
  plan->add_option("--model", args->lengths.model, "published constants: 7b, 13b or 30b")->excludes(cluster);
  plan->add_option("--batch", args->lengths.batch, "sequences of a step")->check(kCount);
  plan->add_option("--batches", args->lengths.batches, "steps")->check(kCount);
  plan->add_option("--max-tokens", args->lengths.longest, "the longest sequence allowed; longer ones are left out")
      ->check(kLarge);
  plan->add_option("--seed", args->lengths.seed, "of sampling from quantiles");
  plan->add_option(
          "--bound", args->lengths.bound,
          "what plans are held against: quick; lp, by linear programs too; search, and a plan searched for ten "
          "times as long; unset: lp, quick where the build has no CLP")
      ->excludes(cluster);
  plan->add_flag("--explain", args->lengths.explain,
                 "the first step's plan, group by group; of a cluster what steps are spent on");
  plan->add_flag("--json", args->lengths.json, "one line of JSON");
  plan->add_option("--plot", args->plot, "tokens per second over ranks, as SVG")->needs(cluster);
}

int RunPlanCommand(const CLI::App& plan, PlanArgs& args) {
  const auto given = [&](const char* option) { return plan.count(option) > 0; };
  if (args.job.job.empty() && args.lengths.file.empty() && args.cluster.empty())
    throw CLI::RequiredError("job, or --lengths FILE, or --cluster FILE,");
  if (args.ranks.size() > 1 && args.cluster.empty())
    throw CLI::ArgumentMismatch("--ranks: several numbers are planned of a cluster only (--cluster FILE)");
  if (!args.job.job.empty()) {
    for (const char* option : {"--planner", "--degree", "--model", "--batch", "--batches", "--max-tokens", "--seed",
                               "--explain", "--json", "--bound"})
      if (given(option)) throw CLI::RequiresError(option, "--lengths or --cluster");
    return shoal::RunPlan(args.job, args.ranks.empty() ? 1 : args.ranks[0]);
  }
  if (args.cluster.empty()) {
    if (given("--set")) throw CLI::RequiresError("--set", "a job or --cluster");
    args.lengths.ranks = args.ranks.empty() ? 1 : args.ranks[0];
    return shoal::RunPlanLengths(args.lengths);
  }
  shoal::PlanClusterArgs cluster{args.cluster,         args.job.sets,        args.lengths.file,
                                 args.ranks,           args.lengths.planner, args.lengths.degree,
                                 args.lengths.explain, args.lengths.json,    args.plot};
  // These are fields of the file.
  for (const auto& [option, field] : {std::pair("--batch", "sequences"), std::pair("--batches", "batches"),
                                      std::pair("--max-tokens", "max_tokens"), std::pair("--seed", "seed")})
    if (given(option))
      cluster.sets.push_back("lengths." + std::string(field) + "=" + plan.get_option(option)->as<std::string>());
  return shoal::RunPlanCluster(cluster);
}

}  // namespace

int main(int argc, char** argv) {
  shoal::cpu::KeepOpenBlasToOneThread();
  shoal::InitLogging(argv[0]);
  CLI::App app{"Shoal trains transformers on the ranks of an MPI job, or on threads of one process.", "shoal"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "shoal 0.1");
  int code = 0;

  auto* doctor = app.add_subcommand("doctor", "what this machine has, what is missing, what to install");
  doctor->callback([&] { code = shoal::RunDoctor(); });

  JobArgs validate_args;
  auto* validate = app.add_subcommand("validate", "check a job file and print it with every default settled");
  AddJob(validate, &validate_args);
  validate->callback([&] { code = shoal::RunValidate(validate_args); });

  PlanArgs plan_args;
  auto* plan = app.add_subcommand(
      "plan", "memory and work per rank, before anything is launched; or sequence plans; or steps on a cluster");
  AddPlan(plan, &plan_args);
  plan->callback([&] { code = RunPlanCommand(*plan, plan_args); });

  shoal::TrainArgs train_args;
  auto* train = app.add_subcommand("train", "train; run again, it resumes");
  AddJob(train, &train_args.job);
  train->add_option("--run-dir", train_args.run_dir, "run directory; default runs/<name>");
  train->add_option("--local-ranks", train_args.local_ranks, "thread ranks of this process: single-node debug mode")
      ->check(kCount);
  train
      ->add_option("--resume-with", train_args.resume_with,
                   "accept that this field (or group of fields) differs from the run's first start")
      ->delimiter(',');
  train->add_flag_function(
      "--reset-optimizer", [&train_args](int64_t) { train_args.reset_optimizer = shoal::ResetOptimizer::kYes; },
      "resume with the optimizer's moments anew, so that optim may change; weights and position stay");
  const auto alias = [&train_args, train](const char* flag, const std::string& field, const char* help) {
    train->add_option_function<std::string>(
        flag, [&train_args, field](const std::string& value) { train_args.job.sets.push_back(field + "=" + value); },
        help);
  };
  const auto alias_flag = [&train_args, train](const char* flag, const std::string& field, const char* help) {
    train->add_flag_function(
        flag, [&train_args, field](int64_t) { train_args.job.sets.push_back(field + "=true"); }, help);
  };
  alias("--wait-for-debugger", "debug.wait_for_debugger", "rank that waits for a debugger (debug.wait_for_debugger)");
  alias_flag("--check-numerics", "debug.check_numerics",
             "search every output and gradient for NaN and infinity (debug.check_numerics)");
  alias_flag("--overfit-one-batch", "debug.overfit_one_batch",
             "train on the first batch only (debug.overfit_one_batch)");
  alias_flag("--skip-bad-images", "data.images.skip_bad_images",
             "leave unreadable images out instead of stopping (data.images.skip_bad_images)");
  alias("--grad-check", "debug.grad_check",
        "check gradients of parameters that match this expression before training (debug.grad_check)");
  train->callback([&] { code = shoal::RunTrain(train_args); });

  using shoal::Weights;
  const auto add_no_ema = [](CLI::App* command, Weights* weights) {
    command->add_flag_function(
        "--no-ema", [weights](int64_t) { *weights = Weights::kTrained; },
        "the weights that training goes on with, where the run has averages of them (optim.ema)");
  };

  std::string eval_run;
  Weights eval_weights = Weights::kAverages, convert_weights = Weights::kAverages;
  int64_t eval_tokens = 0;
  auto* eval = app.add_subcommand("eval", "held-out loss of a run's best checkpoint, or of a named one");
  eval->add_option("run", eval_run, "run directory or checkpoint")->required();
  eval->add_option("--max-tokens", eval_tokens, "held-out tokens to look at; 0: all");
  add_no_ema(eval, &eval_weights);
  eval->callback([&] { code = shoal::RunEval(eval_run, eval_tokens, eval_weights); });

  shoal::SampleArgs sample_args;
  auto* sample = app.add_subcommand("sample", "text from a run's best checkpoint, or from a named one");
  sample->add_option("run", sample_args.run, "run directory or checkpoint")->required();
  sample->add_option("--prompt", sample_args.prompt, "text to continue");
  sample->add_option("--tokens", sample_args.tokens, "how many tokens");
  sample->add_option("--temperature", sample_args.temperature, "0: always the likeliest");
  sample->add_option("--top-k", sample_args.top_k, "only the k likeliest; 0: all");
  sample->add_option("--top-p", sample_args.top_p, "only the likeliest that together reach p");
  sample->add_option("--seed", sample_args.seed, "equal seeds give equal text");
  add_no_ema(sample, &sample_args.weights);
  sample->callback([&] { code = shoal::RunSample(sample_args); });

  auto* data = app.add_subcommand("data", "make and look at datasets");
  data->require_subcommand(1);
  std::vector<std::string> build_inputs;
  std::string build_out, build_split, info_path;
  auto* build = data->add_subcommand(
      "build", "files, folders and JSONL (.jsonl, .gz, .zst) to PREFIX.bin/.idx, one token per byte");
  build->add_option("--out", build_out, "PREFIX")->required();
  build->add_option("inputs", build_inputs, "files and folders")->required();
  build->add_option("--split", build_split, "a document also begins at each line of a text file that matches");
  build->callback([&] { code = shoal::RunDataBuild(build_inputs, build_out, build_split); });
  auto* info = data->add_subcommand("info", "documents, tokens and lengths of a dataset");
  info->add_option("dataset", info_path, "PREFIX of .bin/.idx, or an llm.c .bin")->required();
  info->callback([&] { code = shoal::RunDataInfo(info_path); });

  shoal::LaunchArgs launch_args;
  JobArgs launch_job;
  bool launch_slurm = false, launch_print = false;
  auto* launch = app.add_subcommand("launch", "run a job under mpirun, or print its mpirun line or Slurm script");
  AddJob(launch, &launch_job);
  launch->add_option("--ranks", launch_args.ranks, "number of ranks")->check(kCount);
  launch->add_option("--threads", launch_args.threads, "cores per rank")->check(kCount);
  launch->add_option("--run-dir", launch_args.run_dir, "run directory; default runs/<name>");
  launch->add_option("--nodes", launch_args.nodes, "nodes, for Slurm")->check(kCount);
  launch->add_option("--minutes", launch_args.minutes, "time limit, for Slurm")->check(kCount);
  launch->add_flag("--slurm", launch_slurm, "print an sbatch script that saves before the limit and requeues");
  launch->add_flag("--print", launch_print, "print the mpirun line and do not run it");
  launch->callback([&] {
    launch_args.job = launch_job.job;
    launch_args.sets = launch_job.sets;
    using shoal::LaunchMode;
    code = shoal::RunLaunch(launch_args, launch_slurm   ? LaunchMode::kPrintSlurm
                                         : launch_print ? LaunchMode::kPrintMpirun
                                                        : LaunchMode::kRunMpirun);
  });

  shoal::ExperimentArgs sweep_args;
  bool sweep_slurm = false, sweep_list = false, sweep_collect = false;
  auto* experiment = app.add_subcommand("experiment", "run a sweep of jobs; run again, it does what is left");
  experiment->add_option("file", sweep_args.sweep.file, "experiment file (protobuf text format)")->required();
  experiment->add_option("--folder", sweep_args.sweep.folder, "of runs and results; default runs/<name>");
  experiment
      ->add_option("--set", sweep_args.sweep.sets,
                   "override a field of every run's job: path.to.field=value; may be "
                   "repeated")
      ->expected(1)
      ->take_all();
  experiment
      ->add_option("--sweep", sweep_args.sweep.overrides,
                   "override a field of the experiment: 'seeds=[1]'; may be "
                   "repeated")
      ->expected(1)
      ->take_all();
  experiment
      ->add_option("--point", sweep_args.sweep.points,
                   "add a step to an axis: AXIS:LABEL=path.to.field=value, or AXIS:VALUE; may be repeated")
      ->expected(1)
      ->take_all();
  auto* one = experiment->add_option("--run", sweep_args.run, "only this run, by number or name");
  auto* list = experiment->add_flag("--list", sweep_list, "name the runs and where they stand, and do not run them");
  auto* collect = experiment->add_flag("--collect", sweep_collect, "write the results of what is finished");
  experiment->add_flag("--slurm", sweep_slurm, "print an sbatch script with a task for each run that is left")
      ->excludes(one)
      ->excludes(list)
      ->excludes(collect);
  one->excludes(list)->excludes(collect);
  list->excludes(collect);
  experiment->add_option("--minutes", sweep_args.minutes, "time limit of a run, for Slurm")->check(kCount);
  experiment->add_option("--threads", sweep_args.threads, "cores per rank where the job does not say, for Slurm")
      ->check(kCount);
  experiment->callback([&] {
    using shoal::ExperimentMode;
    code = shoal::RunExperiment(sweep_args, sweep_slurm               ? ExperimentMode::kPrintSlurm
                                            : sweep_list              ? ExperimentMode::kList
                                            : sweep_collect           ? ExperimentMode::kCollect
                                            : !sweep_args.run.empty() ? ExperimentMode::kRunOne
                                                                      : ExperimentMode::kRun);
  });

  shoal::CalibrateArgs calibrate_args;
  auto* calibrate = app.add_subcommand(
      "calibrate", "measure this machine for half a minute, so that plan and train predict step times");
  calibrate->add_option("--threads", calibrate_args.threads, "threads per rank")->check(kCount);
  calibrate->add_option("--local-ranks", calibrate_args.local_ranks, "thread ranks of this process")->check(kCount);
  calibrate->add_option("--compute", calibrate_args.compute, "AUTO, FP32 or BF16")
      ->check(CLI::IsMember({"AUTO", "FP32", "BF16"}, CLI::ignore_case));
  calibrate->add_option("--out", calibrate_args.out, "file; default ~/.cache/shoal/calibration.json");
  calibrate->callback([&] { code = shoal::RunCalibrate(calibrate_args); });

  std::string convert_from, convert_to;
  auto* convert = app.add_subcommand(
      "convert", "weights to and from one safetensors file or a Hugging Face folder (GPT-2, LLaMA, Qwen3)");
  convert->add_option("from", convert_from, "run directory, checkpoint, or Hugging Face folder")->required();
  convert->add_option("to", convert_to, "FILE.safetensors in Shoal's names, or else a folder for transformers")
      ->required();
  add_no_ema(convert, &convert_weights);
  convert->callback([&] { code = shoal::RunConvert(convert_from, convert_to, convert_weights); });

  std::string stop_run, diff_a, diff_b, report_out, hang_run;
  std::vector<std::string> inspect_runs, report_runs;
  bool inspect_spectral = false;
  auto* stop = app.add_subcommand("stop", "ask a run to save and stop at its next step");
  stop->add_option("run", stop_run, "run directory")->required();
  stop->callback([&] { code = shoal::RunStop(stop_run); });
  auto* inspect = app.add_subcommand("inspect", "tensors, norms and counters of a checkpoint");
  inspect->add_option("run", inspect_runs, "run directories or checkpoints")->required();
  inspect->add_flag("--spectral", inspect_spectral,
                    "top singular values and gains of hidden matrices; of several runs how they grow with the width");
  inspect->callback([&] {
    using shoal::InspectMode;
    code = shoal::RunInspect(inspect_runs, inspect_spectral ? InspectMode::kSpectra : InspectMode::kTensors);
  });
  auto* diff = app.add_subcommand("diff", "how two checkpoints differ");
  diff->add_option("a", diff_a, "run directory or checkpoint")->required();
  diff->add_option("b", diff_b, "run directory or checkpoint")->required();
  diff->callback([&] { code = shoal::RunDiff(diff_a, diff_b); });
  auto* report = app.add_subcommand("report", "a page about a run, or about several side by side");
  report->add_option("run", report_runs, "run directories")->required();
  report->add_option("--out", report_out, "file; default RUN/report.html, of several report.html beside the first");
  report->callback([&] { code = shoal::RunReport(report_runs, report_out); });
  auto* hang = app.add_subcommand("why-hang", "merge the flight records of a run and name the culprit");
  hang->add_option("run", hang_run, "run directory")->required();
  hang->callback([&] { code = shoal::RunWhyHang(hang_run); });

  shoal::BenchArgs bench_args;
  auto* bench = app.add_subcommand("bench", "one measurement as a line of JSON");
  bench
      ->add_option(
          "what", bench_args.what,
          "probe, step, batches, attention, activations, checkpoint, tracing, images, conv, parity, optimizer, "
          "muon, codec, exchange, planner, sequence_memory or sequence_pairs")
      ->required()
      ->check(CLI::IsMember({"probe", "step", "batches", "attention", "activations", "checkpoint", "tracing", "images",
                             "conv", "parity", "optimizer", "muon", "codec", "exchange", "planner", "sequence_memory",
                             "sequence_pairs"}));
  bench->add_option("job", bench_args.job.job, "job file, for step, conv and others");
  bench->add_option("--set", bench_args.job.sets, "override a field of the job")->expected(1)->take_all();
  bench->add_option("--threads", bench_args.threads, "threads per rank")->check(kCount);
  bench->add_option("--warmup", bench_args.warmup, "steps not measured");
  bench->add_option("--steps", bench_args.steps, "steps measured")->check(kCount);
  bench->add_option("--tokens", bench_args.tokens, "of attention and sequence_memory");
  bench->add_option("--heads", bench_args.heads, "of attention");
  bench->add_option("--head-size", bench_args.head_size, "of attention");
  bench->add_option("--kind", bench_args.kind, "of optimizer: adamw, clip_adamw, lars or lamb");
  bench->add_option("--parameters", bench_args.parameters, "elements, of optimizer and codec")->check(kLarge);
  bench->add_option("--codec", bench_args.codec, "of codec: q4, topk_0.01, ...; default every one");
  bench
      ->add_option("--turns", bench_args.turns,
                   "of step: q8,q5: codecs that a compression plan takes turns with, step by step")
      ->delimiter(',');
  bench->add_option("--folder", bench_args.folder,
                    "of checkpoint and tracing: on the disk to measure; of images and parity: data to read");
  bench->callback([&] { code = shoal::RunBench(bench_args); });

  try {
    app.parse(ReadArguments(argc, argv));
  } catch (const CLI::ParseError& e) {
    const int shown = app.exit(e);
    return shown == 0 ? 0 : 2;
  }
  return code;
}
