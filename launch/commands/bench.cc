// bench: one measurement, one line of JSON, for tests/figures to set beside a peer's.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "comm/world.h"
#include "launch/commands.h"
#include "launch/commands/bench_codec.h"
#include "launch/commands/bench_exchange.h"
#include "launch/commands/bench_optimizer.h"
#include "launch/commands/bench_parity.h"
#include "launch/commands/bench_sequence.h"
#include "launch/config_loader.h"
#include "launch/optimizer_setup.h"
#include "launch/predict.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/trainer.h"
#include "models/transformer.h"
#include "models/transformer_spec.h"
#include "optim/batch_size.h"
#include "optim/optimizer_state.h"
#include "parallel/checkpoint/checkpoint_store.h"
#include "parallel/data_parallel.h"
#include "parallel/mesh.h"
#include "runtime/base/file_system.h"
#include "runtime/base/memory.h"
#include "runtime/base/rank_context.h"
#include "runtime/base/status.h"
#include "runtime/data/loader.h"
#include "runtime/obs/metrics_log.h"
#include "runtime/obs/span.h"
#include "runtime/obs/tensorboard_sink.h"
#include "runtime/obs/trace.h"
#include "runtime/ops/dispatch.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/arena.h"

namespace shoal {
namespace {

// Clean pages of a synced file leave the page cache.
void DropFromCache(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

double Now() { return SteadySeconds(); }

// Seconds since this process began, from /proc, which counts in hundredths; 0 where there is none.
double ProcessAge() {
  std::ifstream in("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  // Field 22; the second is the program's name in parentheses, whatever it holds.
  const std::vector<std::string> fields = absl::StrSplit(text.substr(text.rfind(')') + 1), ' ', absl::SkipEmpty());
  double ticks = 0;
  timespec since_boot{};
  if (fields.size() < 20 || !absl::SimpleAtod(fields[19], &ticks)) return 0;
  if (::clock_gettime(CLOCK_BOOTTIME, &since_boot) != 0) return 0;
  return static_cast<double>(since_boot.tv_sec) + 1e-9 * static_cast<double>(since_boot.tv_nsec) -
         ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

int Attention(const BenchArgs& args) {
  ThreadPool pool(args.threads);
  OpContext ctx{.pool = &pool};
  auto arena = Arena::Create(int64_t{8} << 30, DeviceKind::kCpu);
  if (!arena.ok()) return Fail(arena.status());
  const Shape shape = {args.tokens, args.heads, args.head_size};
  std::vector<Tensor> t;
  for (int i = 0; i < 8; ++i) t.push_back(Tensor::Zeros(shape, DType::kF32));
  for (int i = 0; i < 4; ++i) {
    for (int64_t e = 0; e < t[i].size(); ++e)
      t[i].data<float>()[e] = static_cast<float>(std::sin(0.37 * static_cast<double>(e + i)));
  }
  const Tensor lse = Tensor::Zeros({args.heads, args.tokens}, DType::kF32);
  const std::vector<int32_t> cu = {0, static_cast<int32_t>(args.tokens)};
  const ops::AttentionOptions options{.scale = 1.0f / std::sqrt(static_cast<float>(args.head_size))};
  std::vector<double> seconds;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const double start = Now();
    ops::AttentionVarlenFwd(ctx, **arena, t[0], t[1], t[2], cu, t[4], lse, options);
    ops::AttentionVarlenBwd(ctx, **arena, t[3], t[0], t[1], t[2], t[4], lse, cu, t[5], t[6], t[7], options);
    if (i >= args.warmup) seconds.push_back(Now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  const double n = static_cast<double>(args.tokens), median = seconds[seconds.size() / 2];
  const double flops = 7 * 2 * n * (n + 1) / 2 * static_cast<double>(args.heads * args.head_size);
  std::cout << nlohmann::json{{"seconds", seconds},
                              {"gflops", flops / median / 1e9},
                              {"tokens", args.tokens},
                              {"heads", args.heads}}
                   .dump()
            << std::endl;
  return 0;
}

int Step(const BenchArgs& args) {
  std::vector<std::string> sets = args.job.sets;
  sets.push_back(absl::StrCat("duration={ steps: ", args.warmup + args.steps, " }"));
  sets.push_back(absl::StrCat("runtime.threads_per_rank=", args.threads));
  auto loaded = LoadJob(args.job.job, sets);
  if (!loaded.ok()) return Fail(loaded.status());
  auto job = ResolveJob(*loaded, 0);
  if (!job.ok()) return Fail(job.status());
  if (const absl::Status status = CheckProcesses(*job); !status.ok()) return Fail(status);
  job->mutable_runtime()->set_compute(
      SettleCompute(*job, HostPrefersBf16() ? WeakestHost::kHasBf16 : WeakestHost::kHasNone).compute);
  std::vector<double> losses, seconds, data_seconds;
  std::vector<StepRecord> records;
  double predicted = 0, first_step = 0;
  const double age = ProcessAge(), age_at = Now();
  int ranks = 1;
  const auto body = [&](Communicator& world) -> absl::Status {
    if (world.rank() == 0) ranks = world.size();
    RankContext rank{.rank = world.rank(),
                     .size = world.size(),
                     .host = HostName(),
                     .pool = std::make_unique<ThreadPool>(args.threads)};
    TrainerOptions options{.job = *job, .run_dir = "", .console = TrainerOptions::Console::kQuiet};
    options.turns = args.turns;
    if (world.rank() == 0) options.losses = &losses, options.step_seconds = &seconds;
    if (world.rank() == 0) options.data_seconds = &data_seconds, options.records = &records;
    if (world.rank() == 0) options.first_step_at = &first_step;
    if (world.rank() == 0 && job->runtime().has_calibration()) options.predicted_seconds = &predicted;
    return Train(rank, world, options).status();
  };
  if (UnderMpiLauncher()) {
    auto world = MpiWorld({});
    if (!world.ok()) return Fail(world.status());
    const auto fake = FakeWorld((*world)->rank(), (*world)->size());
    const absl::Status status = body(job->comm().fake() ? *fake : **world);
    if (!status.ok()) AbortJob(Fail(status));
    const bool first = (*world)->rank() == 0;
    world->reset();
    FinalizeMpi();
    if (!first) return 0;
  } else if (const absl::Status status = RunThreadRanks(1, {}, [&](int, Communicator& world) { return body(world); });
             !status.ok()) {
    return Fail(status);
  }
  const double start_seconds = age + first_step - age_at;
  nlohmann::json report = {
      {"step_seconds", std::vector<double>(seconds.begin() + args.warmup, seconds.end())},
      {"data_seconds", std::vector<double>(data_seconds.begin() + args.warmup, data_seconds.end())},
      {"start_seconds", start_seconds},
      {"first_step_seconds", start_seconds + seconds.front()},
      {"peak_rss_bytes", PeakResidentBytes()},
      {"predicted_seconds", predicted},
      {"predicted_bytes", PredictMemory(*job, ranks, Checkpoints::kNo).total()},
      {"bf16_native", HostPrefersBf16()},
      {"losses", losses}};
  for (auto r = records.begin() + args.warmup; r != records.end() && r->reduced_bytes > 0; ++r) {
    report["reduced_bytes"].push_back(r->reduced_bytes);
    report["exposed_seconds"].push_back(r->reduce_exposed_seconds);
    if (r->reduce_predicted_seconds >= 0) report["predicted_exposed_seconds"].push_back(r->reduce_predicted_seconds);
    if (r->compression_plan >= 0) report["compression_plan"].push_back(r->compression_plan);
    if (!args.turns.empty()) report["turns"].push_back(r->compression_turn);
  }
  if (job->model().has_resnet()) {
    report["images"] = job->global_batch().images();
  } else {
    const auto& t = job->model().transformer();
    report["tokens"] = job->global_batch().has_tokens() ? job->global_batch().tokens()
                                                        : job->global_batch().sequences() * job->data().max_tokens();
    report["parameters"] = ParameterCount(t);
    report["embedding_parameters"] = LookupParameterCount(t);
  }
  std::cout << report.dump() << std::endl;
  return 0;
}

// The sequences of the first steps of a run on one rank, each with its last label: what a peer needs to train on the
// same.
int Batches(const BenchArgs& args) {
  auto loaded = LoadJob(args.job.job, args.job.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  auto job = ResolveJob(*loaded, 1);
  if (!job.ok()) return Fail(job.status());
  auto data = TrainingData::Open(job->data(), job->model().transformer().vocabulary());
  if (!data.ok()) return Fail(data.status());
  auto loader = Loader::Create(
      **data, {.global_batch = job->global_batch(), .micro_batch = std::nullopt, .seed = job->seed()}, 0);
  if (!loader.ok()) return Fail(loader.status());
  auto steps = nlohmann::json::array();
  for (int i = 0; i < args.steps; ++i) {
    auto step = nlohmann::json::array();
    const StepBatch batch = (*loader)->Next(Count(job->global_batch()));
    for (const MicroBatch& micro : batch.micro) {
      for (size_t s = 1; s < micro.cu_seqlens.size(); ++s) {
        std::vector<int32_t> tokens(micro.tokens.begin() + micro.cu_seqlens[s - 1],
                                    micro.tokens.begin() + micro.cu_seqlens[s]);
        tokens.push_back(micro.labels[static_cast<size_t>(micro.cu_seqlens[s] - 1)]);
        step.push_back(tokens);
      }
    }
    steps.push_back(step);
  }
  std::cout << steps.dump() << std::endl;
  return 0;
}

// Seconds of writing `bytes` to a new file at `path`, synced, and of reading them back once they have left the cache.
absl::StatusOr<std::pair<double, double>> DiskSeconds(const std::string& path, int64_t bytes) {
  constexpr size_t kPiece = 16 << 20;
  std::vector<char> piece(kPiece, 'x');
  double start = Now();
  {
    SHOAL_ASSIGN_OR_RETURN(const auto file, PosixFiles().Create(path));
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(kPiece)) {
      const auto n = std::min(kPiece, static_cast<size_t>(bytes - at));
      SHOAL_RETURN_IF_ERROR(file->Append(absl::string_view(piece.data(), n)));
    }
    SHOAL_RETURN_IF_ERROR(file->Sync());
    SHOAL_RETURN_IF_ERROR(file->Close());
  }
  const double written = Now() - start;
  DropFromCache(path);
  start = Now();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (fd >= 0 && ::read(fd, piece.data(), kPiece) > 0) {
  }
  ::close(fd);
  const double read = Now() - start;
  SHOAL_RETURN_IF_ERROR(PosixFiles().RemoveAll(path));
  return std::make_pair(written, read);
}

// Saving and loading the job's model and optimizer state, beside what the disk and the memory do with as many bytes.
absl::Status Checkpoint(const BenchArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const auto loaded, LoadJob(args.job.job, args.job.sets));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, ResolveJob(loaded, 1));
  const Transformer model(job.model().transformer());
  const auto world = FakeWorld(0, 1);
  SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(*world, {}));
  SHOAL_ASSIGN_OR_RETURN(const auto optimizer, OptimizerFor(job, model));
  SHOAL_ASSIGN_OR_RETURN(const auto dp, DataParallel::Create(model.params(), *mesh, {}));
  OptimizerState state(*optimizer, dp->pieces(), DeviceKind::kCpu);
  ThreadPool pool(args.threads);
  dp->InitializeWeights(pool, 1);
  OpContext ops{.pool = &pool};
  for (OptimizerPiece& piece : state.pieces()) {
    for (const Tensor& moment : piece.state) ops::Fill(ops, moment, 0.5);
  }
  const int64_t bytes = dp->weight_bytes() + state.bytes();
  const std::string folder = args.folder.empty() ? "bench-checkpoint" : args.folder;
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(folder));
  const Tensor from = Tensor::Zeros({bytes}, DType::kU8), to = Tensor::Zeros({bytes}, DType::kU8);
  std::memset(from.raw(), 1, static_cast<size_t>(bytes));
  nlohmann::json rows = nlohmann::json::array();
  CheckpointStore store({.dir = folder, .keep = 1}, mesh->checkpoint());
  Stateful* const everything[] = {dp.get(), &state};
  for (int i = 0; i < args.steps; ++i) {
    nlohmann::json row;
    SHOAL_ASSIGN_OR_RETURN(const auto disk, DiskSeconds(folder + "/raw", bytes));
    row["disk_write_seconds"] = disk.first;
    row["disk_read_seconds"] = disk.second;
    double start = Now();
    std::memcpy(to.raw(), from.raw(), static_cast<size_t>(bytes));
    row["copy_seconds"] = Now() - start;
    start = Now();
    SHOAL_RETURN_IF_ERROR(store.Save(i + 1, everything, CheckpointStore::Best::kNo));
    row["pause_seconds"] = store.pause_seconds();
    SHOAL_RETURN_IF_ERROR(store.Wait());
    row["save_seconds"] = Now() - start;
    DropFromCache(absl::StrFormat("%s/step-%08d/rank-00000.safetensors", folder, i + 1));
    start = Now();
    SHOAL_RETURN_IF_ERROR(store.LoadNewest(everything).status());
    row["load_seconds"] = Now() - start;
    rows.push_back(row);
  }
  SHOAL_RETURN_IF_ERROR(PosixFiles().RemoveAll(folder));
  std::cout << nlohmann::json{{"bytes", bytes}, {"repeats", rows}}.dump() << std::endl;
  return absl::OkStatus();
}

// Passes spans on in every second step, in the order off on on off, so that drift cancels.
class EverySecondStep : public SpanSink {
 public:
  explicit EverySecondStep(SpanSink* sink) : sink_(sink) {}
  void Add(const Span& span) override {
    if (On(steps_)) sink_->Add(span);
    if (span.name == "step") ++steps_;
  }
  static bool On(size_t step) { return step % 4 == 1 || step % 4 == 2; }

 private:
  SpanSink* sink_;
  size_t steps_ = 0;
};

// Step times with and without a trace, interleaved; and the time of writing a step's metrics everywhere.
absl::Status Tracing(const BenchArgs& args) {
  std::vector<std::string> sets = args.job.sets;
  sets.push_back(absl::StrCat("duration={ steps: ", args.warmup * 4 + args.steps, " }"));
  SHOAL_ASSIGN_OR_RETURN(const auto loaded, LoadJob(args.job.job, sets));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, ResolveJob(loaded, 1));
  Trace trace(0, HostName(), 0);
  EverySecondStep sink(&trace);
  std::vector<double> seconds;
  TrainerOptions options{.job = job, .run_dir = "", .console = TrainerOptions::Console::kQuiet};
  options.step_seconds = &seconds;
  options.spans = &sink;
  const auto world = FakeWorld(0, 1);
  RankContext rank{.rank = 0, .size = 1, .host = HostName(), .pool = std::make_unique<ThreadPool>(args.threads)};
  SHOAL_RETURN_IF_ERROR(Train(rank, *world, options).status());
  std::vector<double> on, off;
  for (auto i = static_cast<size_t>(args.warmup) * 4; i < seconds.size(); ++i)
    (EverySecondStep::On(i) ? on : off).push_back(seconds[i]);

  const std::string folder = args.folder.empty() ? "bench-tracing" : args.folder;
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(folder));
  SHOAL_ASSIGN_OR_RETURN(const auto metrics, MetricsLog::Open(folder + "/metrics.jsonl", 0));
  SHOAL_ASSIGN_OR_RETURN(const auto tensorboard, TensorBoardSink::Open(folder + "/tensorboard"));
  StepRecord record;
  record.lengths.assign(64, 256);
  constexpr int kWrites = 200;
  const double start = Now();
  for (record.step = 1; record.step <= kWrites; ++record.step) {
    SHOAL_RETURN_IF_ERROR(metrics->Write(record));
    SHOAL_RETURN_IF_ERROR(tensorboard->Write(record));
    SHOAL_RETURN_IF_ERROR(WritePrometheus(folder + "/metrics.prom", "bench", record));
  }
  const double metrics_seconds = (Now() - start) / kWrites;
  SHOAL_RETURN_IF_ERROR(PosixFiles().RemoveAll(folder));
  std::cout << nlohmann::json{{"on", on}, {"off", off}, {"metrics_seconds", metrics_seconds}}.dump() << std::endl;
  return absl::OkStatus();
}

// Bytes that one document's forward pass keeps for backward and what it needs at most, by its length.
int Activations(const BenchArgs& args) {
  auto loaded = LoadJob(args.job.job, args.job.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  nlohmann::json rows = nlohmann::json::array();
  for (int32_t tokens = 1024; tokens <= 16384; tokens *= 2) {
    loaded->job.mutable_data()->set_max_tokens(tokens);
    loaded->job.mutable_model()->mutable_transformer()->set_max_positions(tokens);
    loaded->job.mutable_global_batch()->set_sequences(1);
    auto job = ResolveJob(*loaded, 1);
    if (!job.ok()) return Fail(job.status());
    const Prediction p = PredictMemory(*job, 1, Checkpoints::kNo);
    rows.push_back({{"tokens", tokens}, {"saved_bytes", p.saved}, {"peak_bytes", p.activations}});
  }
  std::cout << rows.dump() << std::endl;
  return 0;
}

}  // namespace

int RunBench(const BenchArgs& args) {
  if (args.what == "activations") return Activations(args);
  if (args.what == "checkpoint" || args.what == "tracing") {
    const absl::Status status = args.what == "tracing" ? Tracing(args) : Checkpoint(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "parity") {
    const absl::Status status = BenchParity(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "optimizer" || args.what == "muon") {
    const absl::Status status = args.what == "muon" ? BenchMuon(args) : BenchOptimizer(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "codec") {
    const absl::Status status = BenchCodec(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "exchange" || args.what == "planner") {
    const absl::Status status = args.what == "exchange" ? BenchExchange(args) : BenchPlanner(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "sequence_memory" || args.what == "sequence_pairs") {
    const absl::Status status = args.what == "sequence_memory" ? BenchSequenceMemory(args) : BenchSequencePairs(args);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.what == "batches") return Batches(args);
  if (args.what == "images") return RunBenchImages(args);
  if (args.what == "conv") return RunBenchConv(args);
  if (args.what == "probe") return RunProbe(args.threads);
  if (args.what == "attention") return Attention(args);
  return Step(args);
}

}  // namespace shoal
