// Sweeps without running any: expansion, names, what is finished or changed, results and their statistics.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launch/config_loader.h"
#include "launch/experiment/array_script.h"
#include "launch/experiment/local_sweep.h"
#include "launch/experiment/results.h"
#include "launch/experiment/run_name.h"
#include "launch/experiment/run_status.h"
#include "launch/experiment/sweep.h"
#include "launch/experiment/sweep_plot.h"
#include "launch/folder_lock.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kAxes[] = R"(
  axis { field: "optim.learning_rate" value: ["1e-3", "2e-3"] }
  axis { name: "decay" point { label: "none" set: "optim.adamw.weight_decay=0" }
                       point { label: "strong, early" set: ["optim.adamw.weight_decay=0.3", "optim.clip_norm=0"] } }
)";

class ExperimentTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/experiment_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    Write("job.textproto", R"(
      model { transformer { layers: 1 width: 16 heads: 2 } }
      data { dataset { path: "d" } max_tokens: 32 }
      global_batch { tokens: 64 } duration { steps: 20 })");
  }

  void Write(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(folder_ + "/" + file).parent_path());
    std::ofstream(folder_ + "/" + file) << text;
  }

  absl::StatusOr<Sweep> Load(const std::string& text, const std::vector<std::string>& sets = {},
                             const std::vector<std::string>& points = {}) const {
    Write("sweep.textproto", "job: \"job.textproto\" folder: \"" + folder_ + "/out\"\n" + text);
    return LoadSweep(
        {.file = folder_ + "/sweep.textproto", .folder = "", .sets = sets, .overrides = {}, .points = points});
  }
  Sweep Loaded(const std::string& text) const {
    auto sweep = Load(text);
    EXPECT_TRUE(sweep.ok()) << sweep.status();
    return *std::move(sweep);
  }
  std::string Errors(const std::string& text, const std::vector<std::string>& sets = {},
                     const std::vector<std::string>& points = {}) const {
    const auto sweep = Load(text, sets, points);
    EXPECT_EQ(ExitCodeFor(sweep.status()), ExitCode::kConfig);
    return std::string(sweep.status().message());
  }

  // What a trainer leaves of `run`; a step per loss, a held-out loss at the last where it is given.
  static void Leave(const Sweep& sweep, const SweepRun& run, const std::string& state,
                    const std::vector<double>& losses, double held_out = RunSummary::kNone) {
    const std::string run_dir = sweep.RunDir(run);
    std::filesystem::create_directories(run_dir);
    config::Job job = run.resolved;
    job.mutable_runtime()->set_compute(config::RuntimeConfig::FP32);
    std::ofstream(run_dir + "/job.textproto") << JobText(job);
    std::ofstream(run_dir + "/state") << state << "\n";
    std::ofstream(run_dir + "/environment.json") << "{\"ranks\": " << run.ranks << "}";
    std::ofstream metrics(run_dir + "/metrics.jsonl");
    for (size_t i = 0; i < losses.size(); ++i) {
      metrics << "{\"step\": " << i + 1 << ", \"seconds\": 0.5, \"tokens\": 100, \"loss\": "
              << (std::isfinite(losses[i]) ? absl::StrCat(losses[i]) : "null");
      if (run.ranks > 1) {
        metrics << ", \"reduced_bytes\": " << 1000 * (i + 1)
                << ", \"reduce_exposed_seconds\": " << 2e-3 * static_cast<double>(i + 1);
      }
      if (i + 1 == losses.size() && std::isfinite(held_out)) metrics << ", \"eval_loss\": " << held_out;
      metrics << "}\n";
    }
  }
  static std::vector<RunResult> Results(const Sweep& sweep) {
    std::vector<RunResult> results;
    for (const SweepRun& run : sweep.runs) results.push_back(ReadResult(sweep, run));
    return results;
  }
  static std::vector<std::string> Names(const Sweep& sweep) {
    std::vector<std::string> names;
    for (const SweepRun& run : sweep.runs) names.push_back(run.name);
    return names;
  }

  std::string folder_;
};

TEST_F(ExperimentTest, ExpandsAxesThenRanksThenSeeds) {
  const Sweep sweep = Loaded(std::string(kAxes) + "seeds: [1, 7] ranks: [1, 2] set: \"optim.schedule.shape=CONSTANT\"");
  ASSERT_EQ(sweep.runs.size(), 16u);
  EXPECT_EQ(sweep.runs[0].name, "learning_rate=1e-3,decay=none,ranks=1,seed=1");
  EXPECT_EQ(sweep.runs[1].name, "learning_rate=1e-3,decay=none,ranks=1,seed=7");
  EXPECT_EQ(sweep.runs[15].name, "learning_rate=2e-3,decay=strong-early,ranks=2,seed=7");
  const SweepRun& last = sweep.runs[15];
  EXPECT_EQ(last.ranks, 2);
  for (const config::Job& job : {last.job, last.resolved}) {
    EXPECT_EQ(job.seed(), 7u);
    EXPECT_EQ(job.name(), last.name);
    EXPECT_EQ(job.optim().learning_rate(), 2e-3);
    EXPECT_EQ(job.optim().adamw().weight_decay(), 0.3);
    EXPECT_EQ(job.optim().clip_norm(), 0);
    EXPECT_EQ(job.optim().schedule().shape(), config::ScheduleConfig::CONSTANT);
  }
  EXPECT_EQ(sweep.runs[0].job.optim().clip_norm(), 1) << "what one point sets is not the other's";
}

TEST_F(ExperimentTest, MoreValuesLeaveTheOtherNamesAsTheyAre) {
  const auto few = Names(Loaded("axis { field: \"optim.learning_rate\" value: [\"1e-3\"] } seeds: 1"));
  const auto more =
      Names(Loaded("axis { field: \"optim.learning_rate\" value: [\"3e-3\", \"1e-3\"] } seeds: [1, 2, 3]"));
  EXPECT_THAT(more, testing::IsSupersetOf(few));
  EXPECT_THAT(Names(Loaded("")), ElementsAre("run"));
}

TEST_F(ExperimentTest, PointsOfTheCommandLineComeBehindThoseOfTheFile) {
  const std::vector<std::string> points = {"decay:weak=optim.adamw={ weight_decay: 0.01 }", "learning_rate:3e-3"};
  const auto few = Loaded(kAxes);
  const auto more = Load(kAxes, {}, points);
  ASSERT_TRUE(more.ok()) << more.status();
  EXPECT_EQ(more->runs.size(), 9u);
  EXPECT_THAT(Names(*more), testing::IsSupersetOf(Names(few)));
  EXPECT_EQ(more->runs.back().name, "learning_rate=3e-3,decay=weak");
  EXPECT_EQ(more->runs.back().job.optim().adamw().weight_decay(), 0.01);
  EXPECT_EQ(more->runs.back().job.optim().learning_rate(), 3e-3);
  const auto error = [&](const std::string& point) { return Errors(kAxes, {}, {point}); };
  EXPECT_THAT(error("decoy:weak=seed=3"),
              HasSubstr("--point decoy:weak=seed=3: 'decoy' is no axis; did you mean 'decay'?"));
  for (const char* point : {"decay", "decay:weak", "decay:=optim.clip_norm=0"})
    EXPECT_THAT(error(point), HasSubstr("it takes a label and what it sets: decay:LABEL=FIELD=VALUE")) << point;
  EXPECT_THAT(error("learning_rate:"), HasSubstr("it takes a value: learning_rate:VALUE"));
  EXPECT_THAT(error("decay:none=optim.clip_norm=0"), HasSubstr("axis 'decay' has none twice"));
  EXPECT_THAT(error("decay:weak=optim.clip_nrm=0"), HasSubstr("--point decay:weak=optim.clip_nrm=0: unknown field"));
  EXPECT_THAT(error("learning_rate:fast"), HasSubstr("--point learning_rate:fast: 'optim.learning_rate' is fast"));
}

TEST(RunNames, AreSafeAndStillDifferent) {
  EXPECT_THAT(SafeLabels({"1e-3", "{ steps: 3 }", "a/b", "a:b", "..", ""}),
              ElementsAre("1e-3", "steps-3", "a-b", "a-b~2", "..", "x"));
  const auto longs = SafeLabels({std::string(300, 'a') + "1", std::string(300, 'a') + "2"});
  EXPECT_LT(longs[0].size(), 100u);
  EXPECT_NE(longs[0], longs[1]);
}

TEST_F(ExperimentTest, NamesEveryProblemWithItsPlace) {
  EXPECT_THAT(Errors("axis {\n  field: \"optim.lerning_rate\" value: [\"1\", \"2\"] }"),
              HasSubstr("sweep.textproto:3:3: unknown field 'optim.lerning_rate': no 'lerning_rate'; did you mean "
                        "'learning_rate'?"));
  EXPECT_THAT(Errors("axis { field: \"optim.learning_rate\"\n value: [\"1\", \"fast\"] }"),
              HasSubstr("sweep.textproto:3:15: 'optim.learning_rate' is fast; it takes a number"));
  EXPECT_THAT(Errors("axes { }"), HasSubstr("unknown field 'axes'; did you mean 'axis'?"));
  const std::string several = Errors(
      "axis { field: \"optim.learning_rate\" value: [\"1\", \"1\"] }\naxis { name: \"seed\" point { label: \"a\" } }\n"
      "axis { point { set: \"seed=3\" } }\nseeds: [2, 2]\nranks: [0]\njobs_at_once: 0\nplot { x: \"learning_rte\" "
      "series: \"decay\" }");
  for (const char* text :
       {":2:50: axis 'learning_rate' has 1 twice", ":3:6: 'seed' is a column of results.csv already; seeds: [1, 2]",
        ":4:6: an axis of points needs a name", "a point of axis '' has no label", ":5:12: seeds has 2 twice",
        "ranks is 0", "jobs_at_once is 0", "'learning_rte' is no axis; did you mean 'learning_rate'?"})
    EXPECT_THAT(several, HasSubstr(text));
  EXPECT_THAT(Errors("axis { name: \"a\" field: \"seed\" }"), HasSubstr("axis 'a' takes either a field with values"));
  EXPECT_THAT(Errors(std::string(kAxes) + "plot { x: \"decay\" x_scale: LOG }"),
              HasSubstr("x_scale is LOG, and not all of decay are numbers above 0"));
}

TEST_F(ExperimentTest, ImpossibleRunsAreNamedBeforeAnyIsRun) {
  const std::string errors = Errors(
      "axis { field: \"model.transformer.heads\" value: [\"2\",\n \"3\"] }\nseeds: [1, 2]\nset: \"data.held_out=2\"");
  EXPECT_THAT(errors, HasSubstr("sweep.textproto:3:2: model.transformer.heads is 3"));
  EXPECT_THAT(errors, HasSubstr("(run heads=3,seed=1 and 1 more)"));
  EXPECT_THAT(errors, HasSubstr("sweep.textproto:5:6: data.held_out is 2"));
}

TEST_F(ExperimentTest, NothingIsOverriddenInSilence) {
  EXPECT_THAT(Errors(kAxes, {"optim.learning_rate=5"}),
              HasSubstr("'optim.learning_rate' overrides what --set optim.learning_rate=5 sets"));
  EXPECT_THAT(Errors(std::string(kAxes) + "axis { name: \"all\" point { label: \"a\" set: \"optim.adamw={}\" } }"),
              HasSubstr("'optim.adamw' overrides what axis 'decay' sets"));
  EXPECT_THAT(Errors(std::string(kAxes) + "axis { field: \"optim.sgd.momentum\" value: \"0.5\" }"),
              HasSubstr("optim.adamw.weight_decay is undone by a later axis"));
  EXPECT_THAT(Errors("axis { name: \"a\" field: \"seed\" value: \"3\" }"), HasSubstr("write seeds: [1, 2, 3]"));
  EXPECT_THAT(Errors("seeds: 1", {"seed=3"}), HasSubstr("the sweep itself sets seed"));
  EXPECT_TRUE(Load(kAxes, {"optim.schedule.shape=CONSTANT"}).ok());
}

TEST_F(ExperimentTest, StateComesFromTheRunDirectory) {
  const Sweep sweep = Loaded("seeds: [1, 2, 3, 4, 5, 6]");
  const char* states[] = {"finished", "failed: diverged: 11 steps in a row", "stopped at step 4", "failed: rank 1",
                          "running"};
  for (size_t i = 0; i < std::size(states); ++i) Leave(sweep, sweep.runs[i], states[i], {3, 2});
  const RunState want[] = {RunState::kFinished, RunState::kDiverged, RunState::kStopped,
                           RunState::kFailed,   RunState::kBroken,   RunState::kNew};
  for (size_t i = 0; i < std::size(want); ++i) {
    EXPECT_EQ(StatusOf(sweep, sweep.runs[i]).state, want[i]) << sweep.runs[i].name;
    EXPECT_EQ(Settled(want[i]), i < 2);
  }
}

TEST_F(ExperimentTest, ChangesThatAffectResultsMakeAFreshRun) {
  const Sweep before = Loaded("seeds: 1");
  Leave(before, before.runs[0], "finished", {3, 2});
  const auto state = [&](const std::string& text) {
    const Sweep now = Loaded("seeds: 1 " + text);
    return StatusOf(now, now.runs[0]);
  };
  EXPECT_EQ(state("").state, RunState::kFinished) << "compute: AUTO keeps what it was settled to";
  EXPECT_EQ(state("set: \"log.every_steps=5\"").state, RunState::kFinished);
  EXPECT_EQ(state("set: \"runtime.threads_per_rank=3\"").state, RunState::kFinished);
  EXPECT_EQ(state("set: \"duration.steps=30\"").state, RunState::kChanged);
  EXPECT_EQ(state("set: \"duration.steps=30\"").detail, "duration.steps: 20 -> 30");
  Sweep other_ranks = before;
  other_ranks.runs[0].ranks = 2;
  EXPECT_EQ(StatusOf(other_ranks, other_ranks.runs[0]).detail, "ranks: 1 -> 2");

  const std::string run_dir = before.RunDir(before.runs[0]);
  EXPECT_EQ(*MoveAside(before, before.runs[0]), folder_ + "/out/old/seed=1-1");
  EXPECT_FALSE(std::filesystem::exists(run_dir));
  Leave(before, before.runs[0], "finished", {3, 2});
  EXPECT_EQ(*MoveAside(before, before.runs[0]), folder_ + "/out/old/seed=1-2");
  Leave(before, before.runs[0], "running", {3, 2});
  const auto lock = FolderLock::Take(run_dir, {"run directory", "Wait"});
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(ExitCodeFor(MoveAside(before, before.runs[0]).status()), ExitCode::kEnvironment);
}

TEST_F(ExperimentTest, CellsAverageSeedsAndCountWhatHasNoValue) {
  const Sweep sweep = Loaded("axis { field: \"optim.learning_rate\" value: [\"1\", \"2\", \"3\"] } seeds: [1, 2, 3]");
  const double nan = std::nan("");
  Leave(sweep, sweep.runs[0], "finished", {3}, 1);
  Leave(sweep, sweep.runs[1], "finished", {3}, 2);
  Leave(sweep, sweep.runs[2], "finished", {3}, 6);
  Leave(sweep, sweep.runs[3], "finished", {3}, 2);
  Leave(sweep, sweep.runs[4], "failed: diverged: x", {9}, 8);
  Leave(sweep, sweep.runs[5], "stopped at step 1", {9}, 8);
  Leave(sweep, sweep.runs[6], "finished", {9, nan}, 8);
  const auto cells = Cells(sweep, Results(sweep));
  ASSERT_EQ(cells.size(), 3u);
  EXPECT_EQ(cells[0].values, 3);
  EXPECT_DOUBLE_EQ(cells[0].mean, 3);
  EXPECT_EQ(cells[0].low, 1);
  EXPECT_EQ(cells[0].high, 6);
  EXPECT_EQ(cells[1].values, 1);
  EXPECT_EQ(cells[1].mean, 2);
  EXPECT_EQ(cells[1].diverged, 1);
  EXPECT_EQ(cells[1].unfinished, 1);
  EXPECT_EQ(cells[2].values, 0);
  EXPECT_EQ(cells[2].diverged, 1) << "finished with a loss that is not finite";
  EXPECT_EQ(cells[2].unfinished, 2);
  const std::string table = ResultsTable(sweep, cells);
  EXPECT_THAT(table, HasSubstr("held-out loss"));
  EXPECT_THAT(table,
              HasSubstr("  2              2         2         2         1     * 1 diverged 1 without a value\n"));
  EXPECT_THAT(table, HasSubstr("  3              diverged  diverged  diverged  0     1 diverged 2 without a value\n"));
}

TEST_F(ExperimentTest, CsvHasARowPerRun) {
  const Sweep sweep = Loaded(std::string(kAxes) + "ranks: [1, 2]");
  Leave(sweep, sweep.runs[3], "finished", {4, 2}, 2.5);
  Leave(sweep, sweep.runs[4], "failed: diverged: x", {4});
  const std::vector<std::string> lines = absl::StrSplit(ResultsCsv(sweep, Results(sweep)), '\n');
  ASSERT_EQ(lines.size(), 10u);  // the last is empty
  EXPECT_EQ(lines[0],
            "run,name,learning_rate,decay,seed,ranks,state,unit,held_out_loss,best_held_out_loss,accuracy,loss,"
            "seconds_per_step,reduced_bytes_per_step,exposed_ms_per_step,units_per_second,steps,units,seconds");
  EXPECT_EQ(lines[1], "1,\"learning_rate=1e-3,decay=none,ranks=1\",1e-3,none,1,1,not run,,,,,,,,,,,,");
  EXPECT_EQ(lines[4],
            "4,\"learning_rate=1e-3,decay=strong-early,ranks=2\",1e-3,\"strong, early\",1,2,finished,tokens,2.5,2.5,,2,"
            "0.5,1500,3,200,2,200,1");
  EXPECT_THAT(lines[5], HasSubstr(",diverged,tokens,"));
}

TEST_F(ExperimentTest, MetricsComeFromTheRecords) {
  const Sweep sweep = Loaded("");
  std::vector<double> losses(40, 5.0);
  losses[36] = 1, losses[37] = 2, losses[38] = 3, losses[39] = 6;
  Leave(sweep, sweep.runs[0], "finished", losses, 7);
  const RunSummary s = ReadResult(sweep, sweep.runs[0]).summary;
  EXPECT_EQ(MetricValue(config::LOSS, s), 3) << "mean of the last tenth";
  EXPECT_EQ(MetricValue(config::HELD_OUT_LOSS, s), 7);
  EXPECT_EQ(MetricValue(config::THROUGHPUT, s), 200);
  EXPECT_EQ(MetricValue(config::SECONDS_PER_STEP, s), 0.5);
  EXPECT_TRUE(std::isnan(MetricValue(config::ACCURACY, s)));
  EXPECT_TRUE(Better(config::ACCURACY, 0.9, 0.8));
  EXPECT_TRUE(Better(config::LOSS, 0.8, 0.9));
}

TEST_F(ExperimentTest, APointOfThePlotIsTheBestOverWhatIsNeitherAxisNorSeries) {
  const std::string axes =
      "axis { name: \"optimizer\" point { label: \"adamw\" } point { label: \"sgd\" set: \"optim.sgd={}\" } }\n"
      "axis { field: \"optim.learning_rate\" value: [\"0.1\", \"0.2\"] }\n"
      "axis { name: \"batch\" field: \"global_batch.tokens\" value: [\"64\", \"256\"] }\nseeds: [1, 2]\n";
  const Sweep sweep = Loaded(axes + "plot { x: \"batch\" series: \"optimizer\" x_scale: LOG }");
  for (const SweepRun& run : sweep.runs) {
    const bool sgd = run.at[0] == 1;
    // 0.2 is better for adamw; for sgd it diverges at one seed and looks better at the other.
    if (sgd && run.at[1] == 1 && run.seed == 2)
      Leave(sweep, run, "failed: diverged: x", {9});
    else
      Leave(sweep, run, "finished", {3}, run.at[1] == 1 ? 1 : 2);
  }
  const auto cells = Cells(sweep, Results(sweep));
  const auto best = BestCells(sweep, cells);
  ASSERT_EQ(best.size(), 4u);
  EXPECT_EQ(LabelText(sweep, best[0], {0, 1, 2}), "optimizer=adamw, learning_rate=0.2, batch=64");
  EXPECT_EQ(LabelText(sweep, best[2], {0, 1, 2}), "optimizer=sgd, learning_rate=0.1, batch=64");
  EXPECT_THAT(ResultsTable(sweep, cells), HasSubstr("* the best over learning_rate\n"));
  const std::string svg = PlotSweep(sweep, cells);
  for (const char* text :
       {"<svg xmlns", ">optimizer=adamw<", ">optimizer=sgd<", ">256<", "best over learning_rate", "<polygon"})
    EXPECT_THAT(svg, HasSubstr(text));
  EXPECT_THAT(svg, Not(HasSubstr("var(--")));

  // Without series every other axis makes lines, and what diverged is a cross.
  const Sweep plain = Loaded(axes);
  EXPECT_THAT(RolesOf(plain).tuned, IsEmpty());
  EXPECT_THAT(RolesOf(plain).x, ElementsAre(0u));
  EXPECT_THAT(PlotSweep(plain, Cells(plain, Results(plain))),
              HasSubstr("<title>learning_rate=0.2, batch=64: 1 diverged, 0 without a value</title>"));
}

TEST_F(ExperimentTest, APlotOfNothingYetIsAPlot) {
  for (const char* text : {"", kAxes, "seeds: [1, 2]"}) {
    const Sweep sweep = Loaded(text);
    EXPECT_THAT(PlotSweep(sweep, Cells(sweep, Results(sweep))), testing::EndsWith("</svg>\n"));
  }
}

TEST_F(ExperimentTest, CoresBoundWhatRunsAtOnce) {
  const auto plan = [&](const std::string& text, int cores) {
    const Sweep sweep = Loaded("seeds: [1, 2] " + text);
    std::vector<const SweepRun*> runs;
    for (const SweepRun& run : sweep.runs) runs.push_back(&run);
    const auto planned = PlanRuns(sweep, runs, cores);
    return planned.ok() ? absl::StrCat((*planned)[0].cores, " cores, ", (*planned)[0].threads, " threads")
                        : std::string(planned.status().message());
  };
  EXPECT_EQ(plan("", 8), "8 cores, 0 threads") << "a run that takes every core runs alone";
  EXPECT_EQ(plan("jobs_at_once: 4 ranks: 2", 8), "2 cores, 1 threads");
  EXPECT_EQ(plan("jobs_at_once: 2", 8), "4 cores, 4 threads");
  EXPECT_EQ(plan("ranks: 2 set: \"runtime.threads_per_rank=2\"", 8), "4 cores, 0 threads");
  EXPECT_EQ(plan("ranks: 9 set: \"runtime.threads_per_rank=2\"", 8), "8 cores, 0 threads");
  EXPECT_THAT(plan("jobs_at_once: 9", 8), HasSubstr("jobs_at_once is 9, a run takes 1 of this machine's 8 cores"));
  EXPECT_THAT(plan("jobs_at_once: 3 set: \"runtime.threads_per_rank=4\"", 8), HasSubstr("nearest valid: 2"));
}

TEST_F(ExperimentTest, CommandsFollowTheLauncher) {
  const Sweep local = Loaded("ranks: 2");
  EXPECT_THAT(RunCommand(local, local.runs[0], "shoal"),
              ElementsAre("shoal", "train", folder_ + "/out/jobs/ranks=2.textproto", "--run_dir",
                          folder_ + "/out/runs/ranks=2", "--local_ranks=2"));
  const Sweep mpi = Loaded("ranks: 2 launcher: MPIRUN");
  EXPECT_THAT(RunCommand(mpi, mpi.runs[0], "shoal"),
              testing::AllOf(testing::Contains("mpirun"), testing::Contains("none"),
                             Not(testing::Contains("--local_ranks=2"))));
}

TEST_F(ExperimentTest, AnArrayHasATaskPerRunThatIsLeft) {
  const Sweep sweep = Loaded("name: \"rates\" seeds: [1, 2, 3] ranks: [1, 2] jobs_at_once: 2");
  const std::vector<const SweepRun*> left = {&sweep.runs[1], &sweep.runs[5]};
  const SweepArgs args{
      .file = "my sweep", .folder = "", .sets = {"duration.steps=3"}, .overrides = {}, .points = {"a:b=c=d"}};
  const std::string script = SlurmArrayScript(sweep, args, left, {.program = "shoal", .threads = 3});
  for (const char* text :
       {"--job-name='rates'", "--array=0-1%2\n", "--ntasks=1\n", "--cpus-per-task=6\n", "--signal=B:USR1@120",
        "names=(\n  'ranks=1,seed=2'\n  'ranks=2,seed=3'\n)\n", "'shoal' experiment 'my sweep'",
        "--set 'duration.steps=3' --point 'a:b=c=d' --run \"$name\" &\n", "--collect", "scontrol requeue"})
    EXPECT_THAT(script, HasSubstr(text));
  const Sweep srun = Loaded("ranks: [1, 2] launcher: SRUN");
  EXPECT_THAT(SlurmArrayScript(srun, args, {&srun.runs[0], &srun.runs[1]}, {.program = "shoal", .threads = 3}),
              testing::AllOf(HasSubstr("--ntasks=2\n"), HasSubstr("--cpus-per-task=3\n"), HasSubstr("--array=0-1\n")));
}

TEST(FolderLock, IsHeldByOneLiveProcess) {
  const std::string folder = testing::TempDir() + "/folder_lock";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  {
    const auto lock = FolderLock::Take(folder, {"sweep folder", "Wait"});
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_TRUE(FolderLock::Holder(folder).has_value());
    const auto second = FolderLock::Take(folder, {"sweep folder", "Wait"});
    EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kEnvironment);
    EXPECT_THAT(std::string(second.status().message()), HasSubstr("sweep folder " + folder + " is in use by process "));
  }
  EXPECT_FALSE(FolderLock::Holder(folder).has_value());
  std::ofstream(folder + "/lock") << HostName() << " 999999999\n";
  EXPECT_FALSE(FolderLock::Holder(folder).has_value());
  EXPECT_TRUE(FolderLock::Take(folder, {"sweep folder", "Wait"}).ok()) << "the lock of a dead process is taken over";
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  siginfo_t ended;
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);
  std::ofstream(folder + "/lock") << HostName() << " " << child << "\n";
  EXPECT_FALSE(FolderLock::Holder(folder).has_value()) << "a process that has ended and that nobody has reaped";
  ::waitpid(child, nullptr, 0);
  std::ofstream(folder + "/lock") << "elsewhere 1 77\n";
  EXPECT_EQ(*FolderLock::Holder(folder), "process 1 on elsewhere (Slurm job 77)");
}

}  // namespace
}  // namespace shoal
