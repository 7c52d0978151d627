// validate, plan, sample, eval, convert: what needs a job and at most one rank.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/calibration.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/model_setup.h"
#include "launch/predict.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/sequence_setup.h"
#include "launch/workload.h"
#include "models/hugging_face.h"
#include "models/resnet_spec.h"
#include "models/sampling.h"
#include "models/transformer_spec.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "parallel/checkpoint/safetensors.h"
#include "parallel/gradient_codecs.h"
#include "parallel/mesh.h"
#include "parallel/sequence_plan_text.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/module/local_params.h"
#include "runtime/ops/dispatch.h"

namespace shoal {
namespace {

std::string ModelText(const config::ModelConfig& model) {
  if (model.has_resnet()) return ResNetText(model.resnet());
  const auto& t = model.transformer();
  return absl::StrFormat("%d parameters, %d layers, width %d, %d heads, vocabulary %d", ParameterCount(t), t.layers(),
                         t.width(), t.heads(), t.vocabulary());
}

}  // namespace

namespace {

using config::CompressionConfig;

// What each parameter's gradient travels as, or may: planned modes choose once errors are measured.
std::string LayerTable(const config::Job& job) {
  const auto model = MakeModel(job.model());
  const CompressionConfig& config = job.comm().compression();
  const auto codecs = MakeGradientCodecs(config, model->params(), job.seed(), job.parallel().zero());
  std::string text = absl::StrFormat("gradients: %s\n  %-44s %12s %12s %12s  %s\n", codecs->Text(), "parameter",
                                     "elements", "f32", "code", "codec");
  size_t layer = 0;
  for (const Param* param : model->params()) {
    const bool coded = layer < codecs->layers.size() && codecs->layers[layer] == param->id;
    if (coded) ++layer;
    const Codec& codec = *(codecs->planned() && coded ? codecs->options[codecs->uniform] : codecs->of[param->id]);
    absl::StrAppendFormat(&text, "  %-44s %12d %12s %12s  %s\n", param->name, param->size(),
                          HumanBytes(4.0 * static_cast<double>(param->size())),
                          HumanBytes(static_cast<double>(CodeBytes(codec, *param))),
                          !coded              ? "as it is"
                          : codecs->planned() ? absl::StrCat("planned within ", codecs->BudgetText())
                                              : std::string(codec.name()));
  }
  return text;
}

// How long all gradients would take as each codec, were nothing hidden behind backward.
std::string ExchangeTable(const config::Job& job, const ExchangeCosts& costs) {
  const auto model = MakeModel(job.model());
  const auto half = job.parallel().zero() == 0 ? ExchangeCosts::Half::kAll : ExchangeCosts::Half::kScatter;
  CompressionConfig every = job.comm().compression();
  if (every.mode() == CompressionConfig::OFF) return "";
  std::string text = "reduction of all gradients, as calibrated, if none of it hides behind backward:\n";
  std::vector<std::string> names = {"fp32"};
  for (const auto& [name, codec] : costs.codecs) names.push_back(name);
  for (const std::string& name : names) {
    const auto codec = MakeCodec(name, every.block());
    if (!codec.ok() || (*codec)->factor_rank() > 0) continue;
    every.set_mode(CompressionConfig::UNIFORM);
    every.set_codec(name);
    const auto codecs = MakeGradientCodecs(every, model->params(), job.seed());
    double seconds = 0;
    for (const Param* param : model->params()) {
      const double bytes = 4.0 * static_cast<double>(param->size());
      const Codec& own = *codecs->of[param->id];
      seconds += costs.ExchangeSeconds(own, bytes, static_cast<double>(CodeBytes(own, *param)), half) +
                 costs.CodecSeconds(own, bytes, half);
    }
    absl::StrAppendFormat(&text, "  %-16s %8.1f ms\n", name, seconds * 1e3);
  }
  return text;
}

}  // namespace

int Fail(const absl::Status& status) {
  std::cerr << status.message() << std::endl;
  return static_cast<int>(ExitCodeFor(status));
}

int RunValidate(const JobArgs& args) {
  auto loaded = LoadJob(args.job, args.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  const auto job = ResolveJob(*loaded, 0);
  if (!job.ok()) return Fail(job.status());
  std::cout << JobText(*job) << "# " << args.job << " is valid\n";
  return 0;
}

namespace {

// Of the ranks that a plan is for: on this host, or, where the user names a calibration, on the hosts that it is of.
CalibrationKey KeyOfPlan(const config::Job& job, int ranks, int threads) {
  return {job.runtime().has_calibration() ? "" : HostName(), ranks, threads, job.runtime().compute()};
}

// What parallel.sequence makes of the first step, by the costs that are known without measuring: with plans
// DETERMINISTIC what training will.
absl::StatusOr<std::string> SequenceText(config::Job job, int ranks, int threads) {
  config::SequenceConfig& config = *job.mutable_parallel()->mutable_sequence();
  config.set_plans(config::SequenceConfig::DETERMINISTIC);
  const auto world = FakeWorld(0, ranks);
  SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(*world, {}));
  std::string text;
  SHOAL_ASSIGN_OR_RETURN(const SequenceSpreading sequences,
                         SequencesFor(
                             job, KeyOfPlan(job, ranks, threads), [] { return 0.0; }, *mesh, *world, &text));
  if (const std::string modes = SequenceModesText(job, ranks); !modes.empty()) absl::StrAppend(&text, "\n", modes);
  const auto workload = OpenWorkload(job);
  if (!workload.ok()) return absl::StrCat(text, "\nthe first step is not planned: ", workload.status().message(), "\n");
  SHOAL_RETURN_IF_ERROR((*workload)->Start({0, ranks, 0, &sequences}));
  const auto& batch = job.global_batch();
  const StepInputs first = (*workload)->Upcoming(0, batch.has_tokens() ? batch.tokens() : batch.sequences());
  SHOAL_ASSIGN_OR_RETURN(const PlannedStep step, PlanSequences({.lengths = first.lengths,
                                                                .ranks = ranks,
                                                                .model = &sequences.costs,
                                                                .seed = job.seed() ^ BatchHash(0, first.lengths),
                                                                .degree = config.degree()},
                                                               config.planner()));
  return absl::StrFormat(
      "%s\nthe first step, %d sequences of %d tokens, the longest %d: %s, %.3g FLOPs a rank, %.0f ms of forward and "
      "backward, gap at most %.1f %%\n",
      text, first.lengths.size(), first.units, *std::max_element(first.lengths.begin(), first.lengths.end()),
      step.plan.Text(), MakeModel(job.model())->TrainFlops(first.lengths, 0) / ranks, step.seconds * 1e3,
      100 * step.gap());
}

}  // namespace

int RunPlan(const JobArgs& args, int ranks) {
  auto loaded = LoadJob(args.job, args.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  auto job = ResolveJob(*loaded, ranks);
  if (!job.ok()) return Fail(job.status());
  const auto choice = SettleCompute(*job, HostPrefersBf16() ? WeakestHost::kHasBf16 : WeakestHost::kHasNone);
  job->mutable_runtime()->set_compute(choice.compute);
  if (!choice.reason.empty()) std::cout << choice.reason << "\n";
  const Prediction p = PredictMemory(*job, ranks, Checkpoints::kYes);
  const auto line = [](const char* what, int64_t bytes) {
    std::cout << absl::StrFormat("  %-34s %12s\n", what, HumanBytes(static_cast<double>(bytes)));
  };
  std::cout << "model: " << ModelText(job->model()) << "\n"
            << absl::StrFormat("memory of one of %d ranks, largest micro-batch of %d %s:\n", ranks, p.micro_rows,
                               job->model().has_transformer() ? "tokens" : "images");
  line(p.gathered > 0 ? "weights, this rank's share" : "weights", p.weights);
  line("fp32 masters", p.masters);
  line("optimizer state", p.optimizer);
  if (p.noise > 0) line("gradients before a micro-batch", p.noise);
  if (p.averages > 0) line("averages of weights", p.averages);
  if (p.residuals > 0) line("residuals of gradient codes", p.residuals);
  line("activations (saved for backward)", p.saved);
  line("activations (peak)", p.activations);
  line("gradients", p.gradients);
  if (p.gathered > 0) line("gathered weights", p.gathered);
  line("of these at once, by turns", p.step);
  line("reductions receive into", p.communication);
  line("copy for checkpoints", p.checkpoint);
  if (p.images_ahead > 0) line("images made ahead", p.images_ahead);
  line("program", p.program);
  line("total", p.total());

  if (job->comm().compression().mode() != config::CompressionConfig::OFF) std::cout << LayerTable(*job);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads =
      job->runtime().has_threads_per_rank() ? job->runtime().threads_per_rank() : std::max(1, cores / ranks);
  CostSheet cost;
  if (job->parallel().has_sequence()) {
    const auto sequences = SequenceText(*job, ranks, threads);
    if (!sequences.ok()) return Fail(sequences.status());
    std::cout << *sequences;
  } else {
    const auto batches = FullBatch(*job, ranks);
    cost = StepCost(*job, ranks, batches);
    std::cout << absl::StrFormat("one step of a rank, its sequences as long as may be: %d micro-batches, %.3g FLOPs\n",
                                 static_cast<int>(batches.size()), cost.flops());
  }
  const bool named = job->runtime().has_calibration();
  const auto calibration =
      FindCalibration(named ? job->runtime().calibration() : CalibrationPath(), KeyOfPlan(*job, ranks, threads),
                      named ? CalibrationFile::kNamed : CalibrationFile::kUsual);
  if (!calibration.ok()) {
    if (named || !absl::IsNotFound(calibration.status())) return Fail(calibration.status());
    if (!job->parallel().has_sequence())
      std::cout << "step time is not predicted: " << calibration.status().message() << "\n";
    return 0;
  }
  if (calibration->exchange.ranks == ranks) std::cout << ExchangeTable(*job, calibration->exchange);
  if (job->parallel().has_sequence()) return 0;  // by its plan
  double peak = calibration->product_peak;       // of other hosts: as they were
  if (calibration->key.hosts == HostName()) {
    ThreadPool pool(threads);
    peak = MeasureProductPeak(pool, choice.compute == config::RuntimeConfig::BF16 ? DType::kBF16 : DType::kF32);
  }
  const auto seconds = calibration->StepSeconds(cost, peak);
  if (!seconds.ok()) return Fail(seconds.status());
  std::cout << absl::StrFormat("step time of %s: %.0f ms\n", calibration->key.Text(), *seconds * 1e3);
  return 0;
}

namespace {

// A checkpointed model, ready to run on this process alone.
struct Restored {
  config::Job job;
  std::unique_ptr<Model> model;
  std::unique_ptr<LocalParams> params;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<ThreadPool> pool;
  std::string folder;
  std::string which;  // " (averages of weights)", or nothing
  StepContext::Options Options() const {
    return {.ops = {.pool = pool.get()}, .arena = arena.get(), .params = params.get(), .mode = Mode::kEval};
  }
};

// For what a command says.
std::string WhichText(const CheckpointReader& reader, Weights weights) {
  return weights == Weights::kAverages && reader.has_averages() ? " (averages of weights)" : "";
}

absl::StatusOr<Restored> Restore(const std::string& run, Weights weights) {
  Restored r;
  SHOAL_ASSIGN_OR_RETURN(r.folder, FindCheckpoint(run));
  SHOAL_ASSIGN_OR_RETURN(r.job, JobOfRun(run, r.folder));
  SHOAL_ASSIGN_OR_RETURN(r.model, ModelFor(r.job));
  r.params = std::make_unique<LocalParams>(r.model->params(), DType::kF32);
  r.pool = std::make_unique<ThreadPool>(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  SHOAL_ASSIGN_OR_RETURN(r.arena, Arena::Create(int64_t{64} << 30, DeviceKind::kCpu));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader reader, CheckpointReader::Open(r.folder));
  r.which = WhichText(reader, weights);
  OpContext ops{.pool = r.pool.get()};
  for (const Param* param : r.model->params()) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor values, reader.ReadWeight(param->name, weights));
    if (values.shape() != param->shape) {
      return absl::DataLossError(absl::StrCat(r.folder, ": tensor '", param->name, "' has shape ",
                                              ShapeString(values.shape()), ", the job's model ",
                                              ShapeString(param->shape)));
    }
    ops::Copy(ops, values, r.params->Weight(*param));
  }
  for (Buffer* buffer : r.model->buffers()) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor values, reader.ReadWeight(buffer->name, weights));
    ops::Copy(ops, values, buffer->value);
  }
  return r;
}

absl::Status ConvertFromHuggingFace(const std::string& from, const std::string& to) {
  if (!absl::EndsWith(to, ".safetensors"))
    return absl::InvalidArgumentError(
        absl::StrCat(to, " does not end in .safetensors; that is what ", from, " can become"));
  SHOAL_ASSIGN_OR_RETURN(const HuggingFaceModel model, ReadHuggingFace(from));
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : model.weights) tensors.push_back({name, tensor});
  SHOAL_RETURN_IF_ERROR(WriteSafetensors(PosixFiles(), to + ".tmp", tensors));
  SHOAL_RETURN_IF_ERROR(PosixFiles().Rename(to + ".tmp", to));
  config::Job job;
  *job.mutable_model()->mutable_transformer() = model.config;
  job.mutable_model()->set_initial_weights(to);
  std::cout << "for the job file:\n" << JobText(job);
  return absl::OkStatus();
}

absl::Status ConvertToHuggingFace(const std::string& from, const std::string& to, Weights weights) {
  SHOAL_ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(from));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, JobOfRun(from, folder));
  if (!job.model().has_transformer())
    return absl::InvalidArgumentError(
        absl::StrCat(from, " is no transformer; its weights can become a .safetensors file in Shoal's names"));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader reader, CheckpointReader::Open(folder));
  return WriteHuggingFace(
      job.model().transformer(), MultipliersOf(job),
      [&](const std::string& name) { return reader.ReadWeight(name, weights); }, to);
}

}  // namespace

int RunConvert(const std::string& from, const std::string& to, Weights weights) {
  const absl::Status status = IsHuggingFaceFolder(from)            ? ConvertFromHuggingFace(from, to)
                              : absl::EndsWith(to, ".safetensors") ? ExportWeights(from, to, weights)
                                                                   : ConvertToHuggingFace(from, to, weights);
  if (!status.ok()) return Fail(status);
  std::string which;
  if (const auto folder = FindCheckpoint(from); folder.ok()) {
    const auto reader = CheckpointReader::Open(*folder);
    if (reader.ok()) which = WhichText(*reader, weights);
  }
  std::cout << to << " holds the weights of " << from << which << "\n";
  return 0;
}

int RunSample(const SampleArgs& args) {
  auto restored = Restore(args.run, args.weights);
  if (!restored.ok()) return Fail(restored.status());
  const auto& config = restored->job.sample();
  if (!restored->job.model().has_transformer())
    return Fail(absl::InvalidArgumentError("sample is for transformers; this run's model classifies images"));
  if (restored->job.model().transformer().vocabulary() > 256) {
    return Fail(absl::InvalidArgumentError(
        "sample prints bytes; this model's tokenizer is not the byte tokenizer (vocabulary above 256)"));
  }
  const std::string prompt = args.prompt.value_or(config.has_prompt() ? config.prompt() : "\n");
  if (prompt.empty()) return Fail(absl::InvalidArgumentError("--prompt is empty; give at least one character"));
  std::vector<int32_t> tokens;
  for (const char c : prompt) tokens.push_back(static_cast<uint8_t>(c));
  const SamplingOptions options{args.temperature.value_or(config.temperature()), args.top_k.value_or(config.top_k()),
                                args.top_p.value_or(config.top_p()), args.seed.value_or(config.seed())};
  std::string text = prompt;
  for (const int32_t token :
       Generate(static_cast<Transformer&>(*restored->model), restored->Options(), tokens,
                args.tokens.value_or(config.tokens()), restored->job.data().max_tokens(), options)) {
    text += static_cast<char>(token);
  }
  std::cout << text << std::endl;
  return 0;
}

int RunEval(const std::string& run, int64_t max_tokens, Weights weights) {
  auto restored = Restore(run, weights);
  if (!restored.ok()) return Fail(restored.status());
  restored->job.mutable_eval()->set_max_tokens(max_tokens);
  restored->job.mutable_eval()->set_max_images(0);
  auto workload = OpenWorkload(restored->job);
  if (!workload.ok()) return Fail(workload.status());
  double sum = 0, count = 0, correct = 0;
  absl::Status status = (*workload)->Start({});
  if (status.ok()) {
    status = (*workload)->ForHeldOut([&](const Batch& batch) {
      StepContext ctx(restored->Options());
      restored->model->Forward(ctx, batch);
      sum += ctx.losses().at("loss").first;
      count += ctx.losses().at("loss").second;
      if (ctx.losses().contains("correct")) correct += ctx.losses().at("correct").first;
      ctx.DropFrames(0);
      restored->arena->Rewind(0);
      return absl::OkStatus();
    });
  }
  if (!status.ok()) return Fail(status);
  if (count == 0) return Fail(absl::NotFoundError("data.held_out is 0 in this job: nothing to evaluate on"));
  if ((*workload)->unit() == Workload::Unit::kImages) {
    std::cout << absl::StrFormat("%s%s: held-out loss %.6f, accuracy %.2f %% over %d images\n", restored->folder,
                                 restored->which, sum / count, 100 * correct / count, static_cast<int64_t>(count));
    return 0;
  }
  std::cout << absl::StrFormat("%s%s: held-out loss %.6f over %d tokens, perplexity %.4f\n", restored->folder,
                               restored->which, sum / count, static_cast<int64_t>(count), std::exp(sum / count));
  return 0;
}

}  // namespace shoal
