#include "launch/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <limits>
#include <map>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "comm/clock.h"
#include "launch/batch_control.h"
#include "launch/calibration.h"
#include "launch/compression_setup.h"
#include "launch/console.h"
#include "launch/grad_check.h"
#include "launch/idle_ranks.h"
#include "launch/memory_check.h"
#include "launch/model_setup.h"
#include "launch/optimizer_setup.h"
#include "launch/predict.h"
#include "launch/progress_state.h"
#include "launch/resolve.h"
#include "launch/sequence_setup.h"
#include "launch/spectra.h"
#include "launch/step_trace.h"
#include "launch/stop_request.h"
#include "launch/straggler_watch.h"
#include "launch/workload.h"
#include "models/model.h"
#include "models/weights_file.h"
#include "optim/ema.h"
#include "optim/guard.h"
#include "optim/optimizer_state.h"
#include "optim/schedule.h"
#include "parallel/buffer_state.h"
#include "parallel/checkpoint/checkpoint_store.h"
#include "parallel/compression_control.h"
#include "parallel/data_parallel.h"
#include "parallel/mesh.h"
#include "parallel/sequence_control.h"
#include "runtime/base/file_system.h"
#include "runtime/base/memory.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/module/local_params.h"
#include "runtime/module/step_context.h"
#include "runtime/obs/metrics_log.h"
#include "runtime/obs/tensorboard_sink.h"

namespace shoal {
namespace {

// True when a multiple of `every` lies in (before, after].
bool Crossed(const config::Duration& every, const RunProgress& before, const RunProgress& after) {
  const double length = Length(every);
  return length > 0 && std::floor(after.In(every) / length) > std::floor(before.In(every) / length);
}

RunProgress Added(const RunProgress& before, const RunProgress& after) {
  return {after.steps - before.steps, after.samples - before.samples, after.tokens - before.tokens,
          after.epochs - before.epochs};
}

// Sums of what models report.
struct Losses {
  double loss = 0, count = 0, correct = 0;
  void Add(const StepContext& ctx) {
    const auto& reported = ctx.losses();
    loss += reported.at("loss").first;
    count += reported.at("loss").second;
    if (const auto at = reported.find("correct"); at != reported.end()) correct += at->second.first;
  }
};

// What every step's collective sums over ranks: the loss, the squared gradient norm, rows that were classified
// correctly, the wish to stop, NoiseTerms (0 where noise is not measured), RunErrors of gradient codes and factors (0
// without), from kRanks on how long each rank worked, and then, where sequences are spread, how long each rank took for
// each micro-batch.
enum StepScalar : size_t {
  kLoss,
  kSquares,
  kCorrect,
  kStop,
  kScaledSquares,
  kGroups,
  kSamples,
  kEncodedSquares,
  kCodecErrors,
  kFactoredSquares,
  kFactorErrors,
  kRanks
};

class Trainer {
 public:
  Trainer(RankContext& rank, Communicator& world, const TrainerOptions& options)
      : rank_(rank),
        world_(world),
        options_(options),
        job_(options.job),
        guard_(job_.optim().guard()),
        console_(StandardConsole()),
        trace_(job_.log(), options.run_dir, rank_.host, world, options.spans) {}

  absl::StatusOr<TrainOutcome> Run() {
    SHOAL_RETURN_IF_ERROR(SetUp());
    if (job_.has_eval() && job_.eval().has_every()) eval_every_ = job_.eval().every();
    TrainOutcome outcome;
    bool stop = false;
    while (!stop && Progress().In(job_.duration()) < Length(job_.duration())) {
      SHOAL_RETURN_IF_ERROR(SayNews(trace_.BeforeStep()));
      SHOAL_ASSIGN_OR_RETURN(stop, Step());
    }
    SHOAL_RETURN_IF_ERROR(SayNews(trace_.End()));
    outcome.end = stop ? TrainOutcome::End::kStopped : TrainOutcome::End::kFinished;
    if (!stop && evaluated_step_ != progress_.step) SHOAL_RETURN_IF_ERROR(Evaluate());
    SHOAL_RETURN_IF_ERROR(Save());
    if (store_ != nullptr) SHOAL_RETURN_IF_ERROR(store_->Wait());
    outcome.step = progress_.step;
    outcome.last_loss = last_.loss;
    outcome.eval_loss = eval_loss_;
    outcome.eval_accuracy = eval_accuracy_;
    if (predicted_seconds_ > 0) {
      Say(absl::StrFormat("step time: predicted %.0f ms, measured %.0f ms (median); memory: predicted %s, measured %s",
                          predicted_seconds_ * 1e3, MedianStepSeconds() * 1e3,
                          HumanBytes(static_cast<double>(predicted_.total())),
                          HumanBytes(static_cast<double>(memory_peak_))));
    }
    if (options_.weights != nullptr) {
      for (const Param* param : model_->params()) {
        SHOAL_ASSIGN_OR_RETURN(const Tensor w, dp_->WholeWeight(*param));
        options_.weights->append(static_cast<const char*>(w.raw()), static_cast<size_t>(w.bytes()));
      }
    }
    return outcome;
  }

 private:
  bool first() const { return world_.rank() == 0; }
  bool talks() const { return first() && options_.console == TrainerOptions::Console::kStepLines; }
  void Say(const std::string& line) {
    if (options_.log != nullptr) options_.log->Line(line);
    if (talks()) console_.Line(line);
  }

  absl::Status SayNews(const absl::StatusOr<std::string>& news) {
    if (news.ok() && !news->empty()) Say(*news);
    return news.status();
  }

  RunProgress Progress() const {
    return {progress_.step, progress_.position, progress_.tokens,
            static_cast<double>(progress_.position) / static_cast<double>(workload_->epoch_samples())};
  }

  absl::Status SetUp() {
    SHOAL_ASSIGN_OR_RETURN(model_, ModelFor(job_, RecomputedBy(job_.parallel())));
    SHOAL_RETURN_IF_ERROR(CheckRanks(job_, world_.size()));
    SHOAL_RETURN_IF_ERROR(CheckMemory());
    SHOAL_ASSIGN_OR_RETURN(const std::string hosts, HostsOf(world_));
    calibration_key_ = {hosts, world_.size(), rank_.pool->threads(), job_.runtime().compute()};
    SHOAL_ASSIGN_OR_RETURN(mesh_, Mesh::Create(world_, {}));
    SHOAL_ASSIGN_OR_RETURN(workload_, OpenWorkload(job_));
    Say("data: " + workload_->Summary());
    held_out_ = std::make_unique<HeldOutTogether>(job_, *workload_, mesh_->control());
    SHOAL_ASSIGN_OR_RETURN(optimizer_, OptimizerFor(job_, *model_));
    Say(absl::StrCat("optimizer: ", OptimizerName(job_.optim()), "\n",
                     optimizer_->groups().Text(job_.optim().learning_rate())));
    if (job_.optim().has_width_rule()) Say(WidthRuleText(job_));
    DataParallelOptions storage = StorageFor(job_, *model_, *optimizer_);
    if (storage.codecs != nullptr) {
      Say(world_.size() > 1 ? absl::StrCat("gradients travel as ", storage.codecs->Text())
                            : "comm.compression has no effect on one rank: no gradients travel");
    }
    codecs_ = storage.codecs;
    const double cap = job_.runtime().has_activation_gib() ? job_.runtime().activation_gib() : 256;
    SHOAL_ASSIGN_OR_RETURN(
        arena_, Arena::Create(static_cast<int64_t>(cap * (1 << 30)) + predicted_.gradients + predicted_.gathered,
                              DeviceKind::kCpu));
    arena_->Fit(predicted_.step);
    storage.arena = arena_.get();
    SHOAL_ASSIGN_OR_RETURN(dp_, DataParallel::Create(model_->params(), *mesh_, std::move(storage)));
    SHOAL_RETURN_IF_ERROR(SetUpCompression());
    SHOAL_RETURN_IF_ERROR(SetUpSequences());
    owners_ = MakeOwnerSum(*mesh_, job_.parallel().zero());
    buffers_ = std::make_unique<BufferState>(model_->buffers());
    state_ = std::make_unique<OptimizerState>(*optimizer_, dp_->pieces(), DeviceKind::kCpu);
    batch_ = std::make_unique<BatchControl>(job_, world_.size(), state_->grads());
    if (job_.optim().has_ema())
      ema_ = std::make_unique<WeightEma>(job_.optim().ema(), dp_->pieces(), model_->buffers());
    bool resumed = false;
    if (!options_.run_dir.empty()) {
      store_ = std::make_unique<CheckpointStore>(
          CheckpointStore::Options{.dir = options_.run_dir + "/checkpoints",
                                   .keep = job_.checkpoint().keep(),
                                   .mode = job_.checkpoint().async() ? CheckpointStore::Options::Mode::kAsync
                                                                     : CheckpointStore::Options::Mode::kSync},
          mesh_->checkpoint());
      const bool reset = options_.reset_optimizer == ResetOptimizer::kYes;
      const auto step = store_->LoadNewest(Everything(reset ? Moments::kNo : Moments::kYes));
      for (const std::string& warning : store_->warnings()) Say("warning: " + warning);
      if (step.ok()) {
        SHOAL_RETURN_IF_ERROR(state_->loaded());
        SHOAL_RETURN_IF_ERROR(dp_->FinishLoad());
        SHOAL_RETURN_IF_ERROR(batch_->CheckShares());
        resumed = true;
        Say(absl::StrCat("resumed at step ", progress_.step, " from ", options_.run_dir, "/checkpoints",
                         reset ? "; the optimizer's moments start anew" : ""));
      } else if (!absl::IsNotFound(step.status())) {
        return step.status();
      }
    }
    if (!resumed) {
      if (job_.model().has_initial_weights()) {
        SHOAL_RETURN_IF_ERROR(LoadWeights(job_.model().initial_weights(), job_.model(), *model_, *rank_.pool, *dp_));
      } else {
        dp_->InitializeWeights(*rank_.pool, job_.seed());
      }
    }
    if (resumed || ComputeType(job_) == DType::kBF16) SHOAL_RETURN_IF_ERROR(dp_->PublishWeights(*rank_.pool));
    SHOAL_RETURN_IF_ERROR(workload_->Start(
        {world_.rank(), world_.size(), progress_.position, job_.parallel().has_sequence() ? &spreading_ : nullptr}));
    if (first() && !options_.run_dir.empty()) {
      SHOAL_ASSIGN_OR_RETURN(metrics_, MetricsLog::Open(options_.run_dir + "/metrics.jsonl", progress_.step));
      if (job_.log().tensorboard()) {
        SHOAL_ASSIGN_OR_RETURN(tensorboard_, TensorBoardSink::Open(options_.run_dir + "/tensorboard"));
      }
    }
    if (options_.console == TrainerOptions::Console::kStepLines)
      peak_flops_ = MeasureProductPeak(*rank_.pool, ComputeType(job_)) * world_.size();
    started_ = SteadySeconds();
    start_fraction_ = Progress().In(job_.duration()) / Length(job_.duration());
    return absl::OkStatus();
  }

  // Collective where gradients' codecs are planned.
  absl::Status SetUpCompression() {
    if (codecs_ == nullptr || !codecs_->planned() || world_.size() == 1) {
      if (options_.turns.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(
          "codecs take turns with a plan, and nothing is planned: set comm.compression.mode to LGRECO_TIME or "
          "LGRECO_BYTES, on two ranks or more");
    }
    const config::CompressionConfig& config = job_.comm().compression();
    ExchangeCosts costs;
    if (config.mode() == config::CompressionConfig::LGRECO_TIME) {
      std::string how;
      SHOAL_ASSIGN_OR_RETURN(costs, ExchangeCostsFor(job_, calibration_key_, *codecs_, world_, &how));
      Say(how);
    }
    compression_ = std::make_unique<CompressionControl>(config, model_->params(), *codecs_, *dp_, *mesh_,
                                                        job_.parallel().zero(), std::move(costs));
    return compression_->TakeTurns(options_.turns);
  }

  // Collective where sequences are spread.
  absl::Status SetUpSequences() {
    if (!job_.parallel().has_sequence()) return absl::OkStatus();
    std::string how;
    SHOAL_ASSIGN_OR_RETURN(
        spreading_, SequencesFor(
                        job_, calibration_key_, [this] { return MeasureProductPeak(*rank_.pool, ComputeType(job_)); },
                        *mesh_, world_, &how));
    Say(how);
    if (const std::string modes = SequenceModesText(job_, world_.size()); !modes.empty()) Say(modes);
    SHOAL_ASSIGN_OR_RETURN(sequences_, ControlFor(job_, spreading_.costs, *mesh_, [this](int64_t first_position) {
                             StepInputs inputs = workload_->Upcoming(first_position, batch_->batch());
                             return SequenceBatch{first_position, inputs.next_position, std::move(inputs.lengths)};
                           }));
    return absl::OkStatus();
  }

  // This step's micro-batches, by the plan that all ranks have agreed on.
  absl::Status SpreadSequences(StepInputs& inputs, StepRecord& record) {
    if (sequences_ == nullptr) return absl::OkStatus();
    double at = SteadySeconds();
    SHOAL_ASSIGN_OR_RETURN(const SequencePlanRecord* plan,
                           sequences_->BeginStep(progress_.step + 1, progress_.position, inputs.lengths));
    record.comm_exposed_seconds += SteadySeconds() - at;
    Report("plan", at);
    at = SteadySeconds();
    workload_->Spread(plan->plan, inputs);
    record.data_seconds += SteadySeconds() - at;
    Report("data", at);
    return absl::OkStatus();
  }

  // `seconds` by [micro-batch][rank]. Collective: all ranks learn the same from the slowest one's step.
  absl::Status EndSequences(absl::Span<const double> seconds, StepRecord& record) {
    if (sequences_ == nullptr) return absl::OkStatus();
    SHOAL_ASSIGN_OR_RETURN(const auto most,
                           AllReduceValues(mesh_->control(), {record.seconds, -sequences_->exchange_seconds()},
                                           ReduceOp::kMax, {.tag = "step seconds"}));
    sequences_->EndStep(seconds, most[0]);
    const SequencePlanRecord& plan = sequences_->record();
    record.sequence_plan = plan.Text();
    record.plan_predicted_seconds = plan.predicted_step;
    record.plan_gap = plan.gap();
    record.plan_seconds = plan.plan_ms / 1e3;
    record.plan_exposed_seconds = plan.exposed_ms / 1e3;
    record.plan_exchange_seconds = -most[1];
    if (!first() || options_.run_dir.empty()) return absl::OkStatus();
    return AppendPlan("sequences.jsonl", PlanJson(plan));
  }

  // A line of a file of the run directory's plans.
  absl::Status AppendPlan(const char* name, const std::string& line) {
    const std::string folder = options_.run_dir + "/plans";
    SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(folder));
    std::ofstream file(folder + "/" + name, std::ios::app);
    file << line << "\n";
    if (!file.flush()) return EnvironmentError(absl::StrCat("cannot write ", folder, "/", name));
    return absl::OkStatus();
  }

  // What comes into force is said, and kept for the report.
  absl::Status BeginCompression() {
    if (compression_ == nullptr) return absl::OkStatus();
    const int64_t plan = compression_->plan().id;
    SHOAL_ASSIGN_OR_RETURN(const std::string news, compression_->BeginStep(progress_.step + 1));
    if (!news.empty()) Say(news);
    if (compression_->plan().id == plan || !first() || options_.run_dir.empty()) return absl::OkStatus();
    return AppendPlan("compression.jsonl", compression_->PlanJson());
  }

  // All ranks hold the same weights, to the bit, and the same plan: what reductions, codecs and plans promise.
  absl::Status CheckWeights() {
    const int every = job_.comm().check_weights_every_steps();
    if (every <= 0 || world_.size() == 1 || progress_.step % every != 0) return absl::OkStatus();
    const std::string when = absl::StrCat("step ", progress_.step);
    SHOAL_RETURN_IF_ERROR(Annotate(dp_->CheckWeights(), when));
    if (compression_ == nullptr) return absl::OkStatus();
    return Annotate(
        CheckEqualOnAllRanks(mesh_->control(), "compression plan", compression_->PlanMark(), {.tag = "plans"}), when);
  }

  // What the ranks of a host will take must be there, before anything is allocated. Collective.
  absl::Status CheckMemory() {
    predicted_ = PredictMemory(job_, world_.size(), options_.run_dir.empty() ? Checkpoints::kNo : Checkpoints::kYes);
    Say(absl::StrCat("model: ", HumanCount(static_cast<double>(model_->parameter_count())), " parameters; ",
                     MemoryText(predicted_)));
    return CheckMemoryFits(predicted_, rank_.host, world_);
  }

  // The first step's time from the machine's calibration, if there is one.
  absl::Status PredictStepTime(const StepInputs& inputs) {
    if (!first() || (options_.console != TrainerOptions::Console::kStepLines && options_.predicted_seconds == nullptr))
      return absl::OkStatus();
    const bool named = job_.runtime().has_calibration();
    const auto calibration = FindCalibration(named ? job_.runtime().calibration() : CalibrationPath(), calibration_key_,
                                             named ? CalibrationFile::kNamed : CalibrationFile::kUsual);
    if (!calibration.ok()) {
      if (named || !absl::IsNotFound(calibration.status())) return calibration.status();
      Say(absl::StrCat("step time is not predicted: ", calibration.status().message()));
      return absl::OkStatus();
    }
    std::vector<BatchShape> micro;
    for (const Batch& batch : inputs.micro) {
      if (batch.x.defined()) micro.push_back(ShapeOf(batch));
    }
    const double peak =
        peak_flops_ > 0 ? peak_flops_ / world_.size() : MeasureProductPeak(*rank_.pool, ComputeType(job_));
    const auto seconds = calibration->StepSeconds(StepCost(job_, world_.size(), micro), peak);
    if (!seconds.ok()) {
      if (named || !absl::IsNotFound(seconds.status())) return seconds.status();
      Say(absl::StrCat("step time is not predicted: ", seconds.status().message()));
      return absl::OkStatus();
    }
    predicted_seconds_ = *seconds;
    if (options_.predicted_seconds != nullptr) *options_.predicted_seconds = predicted_seconds_;
    Say(absl::StrFormat("step time: %.0f ms predicted", predicted_seconds_ * 1e3));
    return options_.run_dir.empty() ? absl::OkStatus()
                                    : WriteCalibration(options_.run_dir + "/calibration.json", *calibration);
  }

  double MedianStepSeconds() const {
    std::vector<double> seconds(recent_seconds_.begin(), recent_seconds_.end());
    if (seconds.empty()) return 0;
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size() / 2), seconds.end());
    return seconds[seconds.size() / 2];
  }

  // A phase of the step in the trace, or (bytes > 0) work that calibrations know.
  void Report(const char* phase, double start, double bytes = 0) { trace_.Phase(phase, start, bytes); }

  // A Slurm allocation that is about to end: rank 0 decides for all.
  bool AllocationEnds() {
    allocation_left_ = AllocationSecondsLeft();
    return allocation_left_ >= 0 && allocation_left_ < job_.checkpoint().before_end_seconds();
  }

  enum class Moments : uint8_t { kNo, kYes };
  std::vector<Stateful*> Everything(Moments moments = Moments::kYes) {
    // Plans of codes first: they say which state codecs have.
    std::vector<Stateful*> all = {compression_.get(), sequences_.get(), dp_.get(), buffers_.get(),
                                  batch_.get(),       &progress_,       &guard_};
    if (moments == Moments::kYes) all.push_back(state_.get());
    all.push_back(ema_.get());
    std::erase(all, nullptr);
    return all;
  }

  // One optimizer step. Returns whether all ranks agreed to stop.
  absl::StatusOr<bool> Step() {
    StepRecord record;
    double start = SteadySeconds();
    if (steps_here_ == 0 && options_.first_step_at != nullptr) *options_.first_step_at = start;
    SHOAL_ASSIGN_OR_RETURN(StepInputs inputs, workload_->Next(batch_->batch()));
    record.data_seconds = SteadySeconds() - start;
    Report("data", start);
    SHOAL_RETURN_IF_ERROR(SpreadSequences(inputs, record));
    if (steps_here_ == 0) {
      if (sequences_ == nullptr) SHOAL_RETURN_IF_ERROR(PredictStepTime(inputs));
      traffic_ = StepTraffic(*dp_, *state_, *mesh_);
      if (!job_.debug().grad_check().empty()) SHOAL_RETURN_IF_ERROR(GradCheck(inputs));
      start = SteadySeconds() - record.data_seconds;  // what is done once is not the step's time
    }
    record.units = inputs.units;
    record.unit = workload_->unit() == Workload::Unit::kTokens ? StepRecord::Unit::kTokens : StepRecord::Unit::kImages;
    if (job_.optim().has_batch_growth()) {
      record.batch = batch_->batch();
      record.samples =
          record.unit == StepRecord::Unit::kImages ? inputs.units : static_cast<int64_t>(inputs.lengths.size());
    }
    const RunProgress before = Progress();
    Losses losses;
    const double schedule = ScheduleFactor(job_.optim().schedule(), before, job_.duration());
    record.learning_rate = job_.optim().learning_rate() * schedule;
    dp_->BeginStep();
    dp_->set_rate(record.learning_rate);
    SHOAL_RETURN_IF_ERROR(BeginCompression());
    batch_->BeginStep(progress_.step + 1, *dp_, *rank_.pool);
    if (arena_->peak() > arena_->fitted()) arena_->Fit(arena_->peak());
    buffers_->Remember();
    std::vector<double> micro_seconds(inputs.micro.size());
    for (size_t m = 0; m < inputs.micro.size(); ++m) {
      const bool last = m + 1 == inputs.micro.size();
      const double began = SteadySeconds();
      SHOAL_RETURN_IF_ERROR(
          dp_->BeginMicroBatch(last ? DataParallel::MicroBatch::kLast : DataParallel::MicroBatch::kMore));
      record.comm_exposed_seconds += SteadySeconds() - began;
      const Batch batch = inputs.micro[m].x.defined() || !dp_->gathers_weights() ? inputs.micro[m] : IdleBatch(job_);
      if (!batch.x.defined()) continue;
      SHOAL_ASSIGN_OR_RETURN(micro_seconds[m],
                             ForwardBackward(batch, 1.0 / static_cast<double>(inputs.units), losses, record));
      batch_->EndMicroBatch(batch, *rank_.pool);
    }
    double at = SteadySeconds();
    SHOAL_RETURN_IF_ERROR(dp_->FinishReductions());
    record.comm_exposed_seconds += SteadySeconds() - at;
    Report("reduce", at, traffic_["reduce"]);

    // One collective decides about the step.
    const auto ranks = static_cast<size_t>(world_.size()), own = static_cast<size_t>(world_.rank());
    const size_t timed = sequences_ == nullptr ? 0 : inputs.micro.size(), micros = kRanks + ranks;
    std::vector<double> scalars(micros + timed * ranks);
    scalars[kLoss] = losses.loss;
    scalars[kCorrect] = losses.correct;
    if (job_.parallel().zero() > 0 || first()) {
      OpContext ops{.pool = rank_.pool.get(), .spans = trace_.spans()};
      scalars[kSquares] = ops::SumOfSquares(ops, state_->grads());
    }
    const NoiseTerms noise = batch_->Terms(*dp_);
    scalars[kScaledSquares] = noise.scaled_squares;
    scalars[kGroups] = noise.groups;
    scalars[kSamples] = noise.samples;
    const RunErrors codes = dp_->codec_errors();
    scalars[kEncodedSquares] = codes.squares;
    scalars[kCodecErrors] = codes.error_squares;
    const RunErrors factors = dp_->factor_errors();
    scalars[kFactoredSquares] = factors.squares;
    scalars[kFactorErrors] = factors.error_squares;
    const bool files = first() && !options_.run_dir.empty();
    scalars[kStop] = StopSignalled() || (files && (StopFileExists(options_.run_dir) || AllocationEnds())) ? 1 : 0;
    scalars[kRanks + own] = record.forward_seconds + record.backward_seconds;
    for (size_t m = 0; m < timed; ++m) scalars[micros + m * ranks + own] = micro_seconds[m];
    at = SteadySeconds();
    SHOAL_ASSIGN_OR_RETURN(
        scalars, AllReduceValues(mesh_->control(), std::move(scalars), ReduceOp::kSum, {.tag = "step scalars"}));
    record.comm_exposed_seconds += SteadySeconds() - at;
    Report("scalars", at, traffic_["scalars"]);
    record.loss = scalars[kLoss] / static_cast<double>(inputs.units);
    record.grad_norm = std::sqrt(scalars[kSquares]);
    if (scalars[kEncodedSquares] > 0) {
      record.codec_error = std::sqrt(scalars[kCodecErrors] / scalars[kEncodedSquares]);
    }
    record.reduce_exposed_seconds = dp_->reduce_wait_seconds();
    record.reduced_bytes = dp_->reduced_bytes();
    if (record.unit == StepRecord::Unit::kImages)
      record.accuracy = scalars[kCorrect] / static_cast<double>(inputs.units);
    SHOAL_ASSIGN_OR_RETURN(record.skip_reason, guard_.Check(record.loss, record.grad_norm));

    if (compression_ != nullptr) {
      record.compression_plan = compression_->plan().id;
      record.compression_turn = compression_->turn();
      record.reduce_predicted_seconds = compression_->plan().exposed_seconds;
      SHOAL_RETURN_IF_ERROR(compression_->EndStep(
          progress_.step + 1, {scalars[kEncodedSquares], scalars[kCodecErrors]},
          {scalars[kFactoredSquares], scalars[kFactorErrors]},
          record.skip_reason.empty() ? CompressionControl::Outcome::kTaken : CompressionControl::Outcome::kSkipped));
    }

    at = SteadySeconds();
    const double batch_ratio = BatchRatio(job_.optim(), inputs.next_position - progress_.position, inputs.units);
    double publish = 0;
    if (record.skip_reason.empty()) {
      const NoiseTerms all{scalars[kScaledSquares], scalars[kGroups], scalars[kSamples]};
      SHOAL_ASSIGN_OR_RETURN(const std::string news, batch_->Update(all, scalars[kSquares], record));
      if (!news.empty()) Say(news);
      const double clip = job_.optim().clip_norm();
      OptimizerStep update{.learning_rate = record.learning_rate,
                           .grad_scale = clip > 0 && record.grad_norm > clip ? clip / record.grad_norm : 1.0,
                           .grad_norm = record.grad_norm,
                           .schedule = schedule,
                           .seed = job_.seed()};
      dp_->CommitResiduals(record.learning_rate);
      state_->BeginUpdate(batch_ratio, update);
      SHOAL_RETURN_IF_ERROR(optimizer_->Step({*rank_.pool, *owners_}, update, state_->shard()));
      dp_->ReleaseGradients();
      record.optimizer_seconds = SteadySeconds() - at;
      Report("optimizer", at, traffic_["optimizer"]);
      at = SteadySeconds();
      SHOAL_RETURN_IF_ERROR(dp_->PublishWeights(*rank_.pool));
      publish = SteadySeconds() - at;
      Report("publish", at, traffic_["publish"]);
      ++progress_.updates;
      SHOAL_RETURN_IF_ERROR(buffers_->AverageOverRanks(mesh_->control()));
    } else {
      dp_->ReleaseGradients();
      buffers_->Restore();
    }
    record.comm_exposed_seconds += publish;
    ++progress_.step;
    progress_.position = inputs.next_position;
    if (workload_->unit() == Workload::Unit::kTokens) progress_.tokens += inputs.units;
    const RunProgress after = Progress();
    if (ema_ != nullptr && record.skip_reason.empty()) {
      at = SteadySeconds();
      ema_->Update(*rank_.pool, Added(before, after), batch_ratio);
      record.optimizer_seconds += SteadySeconds() - at;
      Report("averages", at);
    }
    SHOAL_RETURN_IF_ERROR(CheckWeights());
    stragglers_.Note(absl::MakeConstSpan(scalars).subspan(kRanks, ranks), record);
    record.step = progress_.step;
    record.lengths = inputs.lengths;
    record.seconds = SteadySeconds() - start;
    SHOAL_RETURN_IF_ERROR(EndSequences(absl::MakeConstSpan(scalars).subspan(micros, timed * ranks), record));
    Report("step", start);
    ++steps_here_;
    if (recent_seconds_.size() == kRecentSteps) recent_seconds_.pop_front();
    recent_seconds_.push_back(record.seconds);
    const bool ends = after.In(job_.duration()) >= Length(job_.duration());
    if (ends || (eval_every_.unit_case() != config::Duration::UNIT_NOT_SET && Crossed(eval_every_, before, after))) {
      SHOAL_RETURN_IF_ERROR(Evaluate());
      record.eval_loss = eval_loss_;
      record.eval_accuracy = eval_accuracy_;
    }
    const int64_t spectral = job_.log().spectral_every_steps();
    if (spectral > 0 && progress_.step % spectral == 0 && !options_.run_dir.empty()) {
      SHOAL_ASSIGN_OR_RETURN(record.spectra, MeasureSpectra(model_->params(), *dp_, mesh_->control(), *rank_.pool));
    }
    SHOAL_RETURN_IF_ERROR(Report(record));
    if (job_.checkpoint().has_every() && Crossed(job_.checkpoint().every(), before, after))
      SHOAL_RETURN_IF_ERROR(Save());
    return scalars[kStop] > 0;
  }

  // Returns the seconds it took, but for those that it waited for ranks outside of its group.
  absl::StatusOr<double> ForwardBackward(const Batch& batch, double grad_scale, Losses& losses, StepRecord& record) {
    try {
      StepContext ctx(ContextOptions(*dp_, Mode::kTrain, grad_scale));
      double at = SteadySeconds(), seconds = 0, waited_in_group = 0;
      const auto ends = [&](const char* phase, double& worked) {  // what was waited for others is no work
        const double elapsed = SteadySeconds() - at, outside = dp_->TakePassWait(),
                     inside = ctx.waited_seconds() - waited_in_group;
        waited_in_group += inside;
        record.comm_exposed_seconds += outside + inside;
        worked += elapsed - outside - inside;
        seconds += elapsed - outside;
        Report(phase, at);
        at = SteadySeconds();
      };
      const Batch y = model_->Forward(ctx, batch);
      ends("forward", record.forward_seconds);
      model_->Backward(ctx, y);
      ends("backward", record.backward_seconds);
      losses.Add(ctx);
      return seconds;
    } catch (const StepAborted& aborted) {
      return aborted.status();
    }
  }

  class ControlSum : public RankSum {
   public:
    explicit ControlSum(const std::unique_ptr<Mesh>& mesh) : mesh_(mesh) {}
    absl::Status Sum(absl::string_view tag, absl::Span<double> values) override {
      const Tensor x = Tensor::Borrow(values.data(), {static_cast<int64_t>(values.size())}, DType::kF64);
      return mesh_->control().AllReduce(x, ReduceOp::kSum, {.tag = tag})->Wait();
    }

   private:
    const std::unique_ptr<Mesh>& mesh_;
  };

  StepContext::Options ContextOptions(ParamSource& params, Mode mode, double grad_scale) {
    return {.ops = {.pool = rank_.pool.get(), .spans = trace_.spans()},
            .arena = arena_.get(),
            .params = &params,
            .ranks = world_.size() > 1 ? &rank_sum_ : nullptr,
            .compute = ComputeType(job_),
            .seed = job_.seed(),
            .mode = mode,
            .numerics = job_.debug().check_numerics() ? Numerics::kCheck : Numerics::kTrust,
            .grad_scale = grad_scale};
  }

  // debug.grad_check; every rank checks its own first micro-batch, rank 0 tells.
  absl::Status GradCheck(const StepInputs& inputs) {
    const auto first =
        std::find_if(inputs.micro.begin(), inputs.micro.end(), [](const Batch& batch) { return batch.x.defined(); });
    SHOAL_ASSIGN_OR_RETURN(const std::string table,
                           CheckGradients(job_, job_.debug().grad_check(),
                                          first == inputs.micro.end() ? Batch() : *first, *dp_, *rank_.pool));
    if (!table.empty()) Say("gradients against differences of the loss, in float64:\n" + table);
    return absl::OkStatus();
  }

  // Evaluates the averages of weights where there are any.
  absl::Status Evaluate() {
    if (ema_ == nullptr) return EvaluateWeights();
    const auto exchange = [this] {
      ema_->Swap(*rank_.pool);
      return dp_->PublishWeights(*rank_.pool);
    };
    SHOAL_RETURN_IF_ERROR(exchange());
    SHOAL_RETURN_IF_ERROR(EvaluateWeights());
    return exchange();
  }

  // Mean loss over the held-out tokens, the same on every rank.
  absl::Status EvaluateWeights() {
    evaluated_step_ = progress_.step;
    Losses losses;
    const auto evaluate = [&](const Batch& own) -> absl::Status {
      const Batch batch = own.x.defined() || !dp_->gathers_weights() ? own : IdleBatch(job_);
      if (!batch.x.defined()) return absl::OkStatus();
      SHOAL_RETURN_IF_ERROR(dp_->BeginEvaluation());
      try {
        StepContext ctx(ContextOptions(*dp_, Mode::kEval, 1));
        model_->Forward(ctx, batch);
        losses.Add(ctx);
        ctx.DropFrames(0);
        arena_->Rewind(0);
      } catch (const StepAborted& aborted) {
        return aborted.status();
      }
      return absl::OkStatus();
    };
    SHOAL_RETURN_IF_ERROR(dp_->gathers_weights() ? held_out_->ForEach(evaluate) : workload_->ForHeldOut(evaluate));
    SHOAL_RETURN_IF_ERROR(dp_->ReleaseWeights());
    SHOAL_ASSIGN_OR_RETURN(
        const auto total, AllReduceValues(mesh_->control(), {losses.loss, losses.count, losses.correct}, ReduceOp::kSum,
                                          {.tag = "evaluation"}));
    if (total[1] == 0) return absl::OkStatus();
    eval_loss_ = total[0] / total[1];
    // The best checkpoint classifies best, or where nothing is classified has the lowest loss.
    double score = eval_loss_;
    if (workload_->unit() == Workload::Unit::kImages) {
      eval_accuracy_ = total[2] / total[1];
      score = 1 - eval_accuracy_;
    }
    improved_ = progress_.evals == 0 || score < progress_.best_eval;
    if (improved_) progress_.best_eval = score;
    ++progress_.evals;
    return absl::OkStatus();
  }

  absl::Status Save() {
    if (store_ == nullptr || saved_step_ == progress_.step) return absl::OkStatus();
    saved_step_ = progress_.step;
    const bool best = improved_ && evaluated_step_ == progress_.step;
    return store_->Save(progress_.step, Everything(), best ? CheckpointStore::Best::kYes : CheckpointStore::Best::kNo);
  }

  absl::Status Report(StepRecord& record) {
    if (options_.losses != nullptr) options_.losses->push_back(record.loss);
    if (options_.step_seconds != nullptr) options_.step_seconds->push_back(record.seconds);
    if (options_.data_seconds != nullptr) options_.data_seconds->push_back(record.data_seconds);
    if (options_.records != nullptr) options_.records->push_back(record);
    last_ = record;
    if (!first()) {
      if (options_.log != nullptr && record.step % job_.log().every_steps() == 0) {
        options_.log->Line(absl::StrFormat("step %d | %.0f ms: data %.0f, forward %.0f, backward %.0f, waited %.0f",
                                           record.step, record.seconds * 1e3, record.data_seconds * 1e3,
                                           record.forward_seconds * 1e3, record.backward_seconds * 1e3,
                                           record.comm_exposed_seconds * 1e3));
      }
      return absl::OkStatus();
    }
    record.allocation_left_seconds = allocation_left_;
    record.predicted_seconds = predicted_seconds_;
    if (job_.duration().has_steps()) record.total_steps = job_.duration().steps();
    memory_peak_ = std::max(memory_peak_, ResidentBytes());
    record.memory_bytes = memory_peak_;
    record.memory_predicted_bytes = predicted_.total();
    const double flops =
        model_->TrainFlops(record.lengths, record.unit == StepRecord::Unit::kImages ? record.units : 0);
    if (peak_flops_ > 0) record.mfu = flops / record.seconds / peak_flops_;
    if (record.mfu > 1.05) record.mfu = 0;  // the probe was disturbed: no figure is better than a wrong one
    const double fraction = Progress().In(job_.duration()) / Length(job_.duration());
    if (fraction > start_fraction_)
      record.eta_seconds = (SteadySeconds() - started_) * std::max(0.0, 1 - fraction) / (fraction - start_fraction_);
    if (metrics_ != nullptr) SHOAL_RETURN_IF_ERROR(metrics_->Write(record));
    if (tensorboard_ != nullptr) SHOAL_RETURN_IF_ERROR(tensorboard_->Write(record));
    // Once a second is more often than it is read.
    if (metrics_ != nullptr && job_.log().prometheus() && SteadySeconds() - prometheus_written_ > 1) {
      prometheus_written_ = SteadySeconds();
      SHOAL_RETURN_IF_ERROR(WritePrometheus(options_.run_dir + "/metrics.prom", job_.name(), record));
    }
    if (record.step % job_.log().every_steps() == 0 || std::isfinite(record.eval_loss) || !record.skip_reason.empty())
      Say(StepLine(record));
    if (talks()) console_.Bar(fraction, record.eta_seconds);
    return absl::OkStatus();
  }

  RankContext& rank_;
  Communicator& world_;
  const TrainerOptions& options_;
  const config::Job& job_;
  std::unique_ptr<Mesh> mesh_;
  ControlSum rank_sum_{mesh_};
  std::unique_ptr<Workload> workload_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  Prediction predicted_;
  CalibrationKey calibration_key_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<HeldOutTogether> held_out_;
  std::unique_ptr<DataParallel> dp_;
  std::unique_ptr<BufferState> buffers_;
  std::unique_ptr<OptimizerState> state_;
  std::unique_ptr<BatchControl> batch_;
  std::unique_ptr<WeightEma> ema_;                   // null: no averages
  std::shared_ptr<const GradientCodecs> codecs_;     // null: gradients travel as they are
  std::unique_ptr<CompressionControl> compression_;  // null: nothing is planned
  SequenceSpreading spreading_;
  std::unique_ptr<SequenceControl> sequences_;  // null: every sequence is one rank's
  std::unique_ptr<OwnerSum> owners_;
  std::unique_ptr<CheckpointStore> store_;
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<TensorBoardSink> tensorboard_;
  double prometheus_written_ = 0;
  ProgressState progress_;
  Guard guard_;
  StepRecord last_;
  config::Duration eval_every_;
  double eval_loss_ = std::numeric_limits<double>::quiet_NaN();
  double eval_accuracy_ = std::numeric_limits<double>::quiet_NaN();
  bool improved_ = false;
  int64_t evaluated_step_ = -1, saved_step_ = -1, steps_here_ = 0, memory_peak_ = 0;
  double peak_flops_ = 0, started_ = 0, start_fraction_ = 0, predicted_seconds_ = 0, allocation_left_ = -1;
  static constexpr size_t kRecentSteps = 100;
  std::deque<double> recent_seconds_;
  Console console_;
  StepTrace trace_;
  std::map<std::string, double> traffic_;  // bytes of each step's work outside the model
  StragglerWatch stragglers_;
};

}  // namespace

absl::StatusOr<TrainOutcome> Train(RankContext& rank, Communicator& world, const TrainerOptions& options) {
  return Trainer(rank, world, options).Run();
}

}  // namespace shoal
