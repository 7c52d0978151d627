#include "launch/resolve.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/batch_control.h"
#include "launch/image_workload.h"
#include "launch/optimizer_setup.h"
#include "launch/predict.h"
#include "launch/sequence_setup.h"
#include "models/resnet_spec.h"
#include "models/transformer_spec.h"
#include "optim/schedule.h"
#include "parallel/gradient_codecs.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/data/images/image_config.h"

namespace shoal {
namespace {

class Checker {
 public:
  explicit Checker(const LoadedJob& loaded) : places_(loaded.places) {}
  // A message that begins with the field's path gets that field's place, or its nearest group's.
  void Add(const std::string& message) {
    std::string field = message.substr(0, message.find_first_of(" :"));
    for (;;) {
      const auto at = places_.find(field);
      if (at != places_.end()) return errors_.Add(at->second, message);
      const size_t dot = field.rfind('.');
      if (dot == std::string::npos) return errors_.Add("", message);
      field.resize(dot);
    }
  }
  void AddAll(const absl::Status& status) {
    if (status.ok()) return;
    for (const auto line : absl::StrSplit(status.message(), '\n')) Add(std::string(line));
  }
  void Positive(const char* field, double value) {
    if (value <= 0) Add(absl::StrCat(field, " is ", value, "; it must be above 0"));
  }
  absl::Status Result() const { return errors_.Result(); }

 private:
  const FieldPlaces& places_;
  ConfigErrors errors_;
};

void CheckImagesSize(Checker& check, const char* field, const config::Size& size) {
  if (size.has_images())
    check.Positive((std::string(field) + ".images").c_str(), static_cast<double>(size.images()));
  else
    check.Add(absl::StrCat(field, " of an image model is in images; write ", field, " { images: 128 }"));
}

void CheckSize(Checker& check, const char* field, const config::Size& size) {
  switch (size.unit_case()) {
    case config::Size::kTokens:
      return check.Positive((std::string(field) + ".tokens").c_str(), static_cast<double>(size.tokens()));
    case config::Size::kSequences:
      return check.Positive((std::string(field) + ".sequences").c_str(), static_cast<double>(size.sequences()));
    case config::Size::kImages:
      return check.Add(
          absl::StrCat(field, ".images is for image models; a transformer's batch is tokens or sequences"));
    case config::Size::UNIT_NOT_SET:
      return check.Add(absl::StrCat(field, " names no unit; write ", field, " { tokens: 8192 } or { sequences: 8 }"));
  }
}

void CheckDuration(Checker& check, const char* field, const config::Duration& d, const config::ModelConfig& model) {
  if (model.has_resnet() && d.has_tokens())
    check.Add(absl::StrCat(field, ".tokens is for text; an image model's durations are steps, samples or epochs"));
  if (d.unit_case() == config::Duration::UNIT_NOT_SET)
    check.Add(absl::StrCat(field, " names no unit; write ", field, " { steps: 1000 }, or samples, tokens, epochs"));
  else
    check.Positive(field, Length(d));
}

// What is said of a resolved model's parameters.
void CheckParameters(const config::Job& job, Checker& check) {
  if (job.comm().has_thread_link_mbit()) check.Positive("comm.thread_link_mbit", job.comm().thread_link_mbit());
  if (job.comm().check_weights_every_steps() < 0)
    check.Add(absl::StrCat("comm.check_weights_every_steps is ", job.comm().check_weights_every_steps(),
                           "; it is 0 (never) or more"));
  const auto model = MakeModel(job.model());
  check.AddAll(OptimizerFor(job, *model).status());
  check.AddAll(CheckCompression(job.comm().compression(), model->params(), job.parallel().zero()));
}

// Data and model of a transformer.
void ResolveText(config::Job& job, Checker& check) {
  if (job.data().has_images())
    check.Add("data.images is for image models; a transformer trains on data.dataset { path: \"PREFIX\" }");
  if (job.data().max_tokens() < 1)
    check.Add(absl::StrCat("data.max_tokens is ", job.data().max_tokens(), "; it needs 1 or more"));
  if (job.data().held_out() < 0 || job.data().held_out() >= 1)
    check.Add(absl::StrCat("data.held_out is ", job.data().held_out(), "; it lies in [0, 1)"));
  if (job.data().dataset_size() == 0)
    check.Add(
        "data.dataset is not given; build one with `shoal data build --out PREFIX FILES...` and write dataset { path: "
        "\"PREFIX\" }");
  for (const auto& dataset : job.data().dataset()) {
    if (dataset.path().empty()) check.Add("data.dataset.path is not set; it names a .bin/.idx pair");
    if (dataset.weight() <= 0)
      check.Add(absl::StrCat("data.dataset.weight is ", dataset.weight(), "; it must be above 0"));
  }
  if (!job.model().has_transformer()) {
    check.Add(
        "model names no model; write model { transformer { preset: GPT2 layers: 4 width: 256 heads: 4 } } or "
        "model { resnet { preset: RESNET18 } }");
    check.AddAll(CheckOptimizer(job.optim()));
  } else if (auto resolved = ResolveTransformer(job.model().transformer(), job.data().max_tokens()); resolved.ok()) {
    *job.mutable_model()->mutable_transformer() = *resolved;
    CheckParameters(job, check);
  } else {
    check.AddAll(resolved.status());
    check.AddAll(CheckOptimizer(job.optim()));
  }
}

// Data and model of a ResNet. What the job leaves unset is read from the images, whose errors are returned.
absl::Status ResolveImages(config::Job& job, Checker& check) {
  if (job.data().dataset_size() > 0)
    check.Add("data.dataset is text; model.resnet trains on data.images { path: \"FOLDER\" }");
  if (!job.data().has_images()) {
    check.Add("data.images is not given; write data { images { path: \"FOLDER\" } }");
    return absl::OkStatus();
  }
  const absl::Status options = CheckImageConfig(job.data().images());
  if (!options.ok()) {
    check.AddAll(options);
    return absl::OkStatus();
  }
  auto& resnet = *job.mutable_model()->mutable_resnet();
  ImageFacts facts{resnet.image_size(), resnet.channels(), resnet.classes()};
  if (!resnet.has_image_size() || !resnet.has_channels() || !resnet.has_classes()) {
    SHOAL_ASSIGN_OR_RETURN(facts, ReadImageFacts(job.data().images()));
  }
  auto resolved = ResolveResNet(resnet, facts);
  if (!resolved.ok()) {
    check.AddAll(resolved.status());
    check.AddAll(CheckOptimizer(job.optim()));
    return absl::OkStatus();
  }
  resnet = *resolved;
  if (job.optim().has_width_rule()) {
    check.Add("optim.width_rule is for transformers; no rule is known for the widths of model.resnet: remove it");
    job.mutable_optim()->clear_width_rule();
  }
  CheckParameters(job, check);
  job.mutable_data()->mutable_images()->set_size(resnet.image_size());
  job.mutable_data()->mutable_images()->set_channels(resnet.channels());
  return absl::OkStatus();
}

bool HasOneDegree(absl::string_view planner) {
  const auto all = SequencePlanners();
  return std::any_of(all.begin(), all.end(), [&](const auto& p) { return p.name == planner && p.one_degree; });
}

// parallel.sequence, on any number of ranks.
void CheckSequences(const config::Job& job, Checker& check) {
  const auto& sequence = job.parallel().sequence();
  if (job.model().has_resnet()) return check.Add("parallel.sequence is for transformers; images are one rank's each");
  std::vector<std::string> names;
  for (const SequencePlanner& planner : SequencePlanners()) names.emplace_back(planner.name);
  if (std::find(names.begin(), names.end(), sequence.planner()) == names.end()) {
    const std::string near = DidYouMean(sequence.planner(), names);
    check.Add(absl::StrCat("parallel.sequence.planner is '", sequence.planner(), "'",
                           near.empty() ? "" : absl::StrCat("; did you mean '", near, "'"), "; there are ",
                           absl::StrJoin(names, ", ")));
  }
  const auto power_of_two = [&](const char* field, int value) {
    if (value >= 1 && std::has_single_bit(static_cast<unsigned>(value))) return true;
    check.Add(absl::StrCat("parallel.sequence.", field, " is ", value, "; degrees are powers of two: 1, 2, 4, ..."));
    return false;
  };
  if (sequence.has_max_degree()) power_of_two("max_degree", sequence.max_degree());
  if (sequence.has_degree() && power_of_two("degree", sequence.degree())) {
    if (sequence.planner() != "static")
      check.Add(absl::StrCat("parallel.sequence.degree is of planner \"static\"; planner \"", sequence.planner(),
                             "\" chooses degrees itself: remove one"));
  }
  if (job.optim().has_batch_growth())
    check.Add(
        "parallel.sequence spreads samples over ranks, whose gradients are then no independent samples, which "
        "optim.batch_growth compares: remove one");
  if (!job.micro_batch().has_tokens())
    check.Add(
        "parallel.sequence needs micro_batch { tokens: N }, the tokens that a rank holds at once; `shoal plan` shows "
        "the memory that they take");
}

// Whether a group of these ranks holds a sequence of data.max_tokens.
absl::Status CheckSequencesFit(const config::Job& job, int ranks) {
  const auto& sequence = job.parallel().sequence();
  const DegreeLimit limit = SequenceDegreeLimit(job);
  int64_t degree = LargestSequenceDegree(job, ranks);
  std::string why = limit.degree < ranks ? absl::StrCat(limit.why, ": ", limit.degree) : absl::StrCat(ranks, " ranks");
  if (sequence.has_degree()) {
    const std::string field = "parallel.sequence.degree";
    if (ranks % sequence.degree() != 0)
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is ", sequence.degree(), ", which does not divide ", ranks, " ranks"));
    if (sequence.degree() > degree)
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is ", sequence.degree(), "; the highest here is ", degree, " (", why, ")"));
    degree = sequence.degree();
    why = field;
  } else if (const int divisor = ranks & -ranks; HasOneDegree(sequence.planner()) && divisor < degree) {
    degree = divisor;
    why = absl::StrCat("planner ", sequence.planner(), " takes degrees that divide ", ranks, " ranks");
  }
  const int64_t longest = job.data().max_tokens(), tokens = job.micro_batch().tokens();
  if (longest <= tokens * degree) return absl::OkStatus();
  const int64_t share = (longest + degree - 1) / degree;
  config::Job recomputed = job;
  recomputed.mutable_parallel()->set_recompute(config::ParallelConfig::BLOCK);
  const auto bytes = [](const config::Job& of, int64_t n) {
    return HumanBytes(static_cast<double>(ActivationBytes(of, n)));
  };
  return absl::InvalidArgumentError(absl::StrCat(
      "data.max_tokens is ", longest, ", but a group of ", degree, degree == 1 ? " rank" : " ranks",
      ", the largest here (", why, "), holds ", tokens * degree, " tokens (micro_batch.tokens ", tokens,
      " each). Of activations a rank would need ", bytes(job, share), " and has ", bytes(job, tokens),
      ". Raise micro_batch.tokens to ", share,
      job.parallel().recompute() == config::ParallelConfig::BLOCK
          ? ""
          : absl::StrCat(", which takes ", bytes(recomputed, share), " with parallel { recompute: BLOCK }"),
      ", or let groups have ", std::bit_ceil(static_cast<uint64_t>((longest + tokens - 1) / tokens)),
      " ranks, or lower data.max_tokens, with data.over_long: SPLIT"));
}

// Planned codes wait until the learning rate has risen, where it says in steps, or in what a step's batch is given in.
void SettleExactSteps(config::Job& job) {
  const config::Duration& warmup = job.optim().schedule().warmup();
  auto& compression = *job.mutable_comm()->mutable_compression();
  if (!IsPlanned(compression) || compression.has_warmup_steps()) return;
  const config::Size& batch = job.global_batch();
  const int64_t per_step = warmup.has_steps()     ? 1
                           : warmup.has_tokens()  ? batch.tokens()
                           : warmup.has_samples() ? std::max(batch.sequences(), batch.images())
                                                  : 0;
  if (per_step <= 0) return;
  compression.set_warmup_steps(std::max(
      compression.warmup_steps(), static_cast<int32_t>(std::ceil(Length(warmup) / static_cast<double>(per_step)))));
}

}  // namespace

absl::Status CheckRanks(const config::Job& job, int ranks) {
  ConfigErrors errors;
  const auto add = [&errors](const absl::Status& status) {
    if (!status.ok()) errors.Add("", std::string(status.message()));
  };
  add(CheckBatchGrowth(job, ranks));
  if (job.parallel().has_sequence()) add(CheckSequencesFit(job, ranks));
  // With unequal shares some rank has fewer micro-batches than others, whose statistics would wait for it.
  if (job.model().resnet().sync_norm() && job.global_batch().images() % ranks != 0) {
    errors.Add("", absl::StrCat("model.resnet.sync_norm takes equal shares: global_batch.images is ",
                                job.global_batch().images(), " and the job has ", ranks, " ranks; the nearest is ",
                                std::max<int64_t>(1, (job.global_batch().images() + ranks / 2) / ranks) * ranks));
  }
  // A rank without images would leave others alone with the gathering of weights.
  if (ranks > 1 && job.model().has_resnet() && job.parallel().zero() == 3 && job.global_batch().images() % ranks != 0) {
    errors.Add("", absl::StrCat("parallel.zero is 3, which takes equal shares of images: global_batch.images is ",
                                job.global_batch().images(), " and the job has ", ranks, " ranks; the nearest is ",
                                std::max<int64_t>(1, (job.global_batch().images() + ranks / 2) / ranks) * ranks,
                                ", or take parallel.zero: 2"));
  }
  if (job.global_batch().has_images() && job.global_batch().images() < ranks) {
    errors.Add("", absl::StrCat("global_batch.images is ", job.global_batch().images(), " and the job has ", ranks,
                                " ranks; every rank needs an image: take at least ", ranks));
  }
  if (!job.parallel().has_sequence() && job.global_batch().has_sequences() && job.global_batch().sequences() < ranks) {
    errors.Add("", absl::StrCat("global_batch.sequences is ", job.global_batch().sequences(), " and the job has ",
                                ranks, " ranks; every rank needs a sequence: take at least ", ranks));
  }
  return errors.Result();
}

absl::StatusOr<config::Job> ResolveJob(const LoadedJob& loaded, int ranks) {
  config::Job job = loaded.job;
  Checker check(loaded);
  const bool images = job.model().has_resnet();
  if (images) {
    SHOAL_RETURN_IF_ERROR(ResolveImages(job, check));
  } else {
    ResolveText(job, check);
  }
  if (!job.has_global_batch())
    check.Add(absl::StrCat("global_batch is not given; write global_batch { ", images ? "images: 128" : "tokens: 8192",
                           " }"));
  else
    images ? CheckImagesSize(check, "global_batch", job.global_batch())
           : CheckSize(check, "global_batch", job.global_batch());
  if (job.has_micro_batch()) {
    images ? CheckImagesSize(check, "micro_batch", job.micro_batch())
           : CheckSize(check, "micro_batch", job.micro_batch());
    if (job.micro_batch().has_tokens() && !job.parallel().has_sequence() &&
        job.micro_batch().tokens() < job.data().max_tokens()) {
      check.Add(absl::StrCat("micro_batch.tokens is ", job.micro_batch().tokens(), " and data.max_tokens is ",
                             job.data().max_tokens(), "; a micro-batch must hold the longest sequence: take at least ",
                             job.data().max_tokens(),
                             ", or parallel { sequence {} }, which spreads long sequences over ranks"));
    }
  }
  if (!job.has_duration())
    check.Add("duration is not given; write duration { steps: 1000 }");
  else
    CheckDuration(check, "duration", job.duration(), job.model());
  if (job.debug().overfit_one_batch() && (job.duration().has_samples() || job.duration().has_epochs()))
    check.Add("duration is in samples or epochs, which debug.overfit_one_batch never gets on with; give steps");
  if (job.optim().schedule().has_warmup())
    CheckDuration(check, "optim.schedule.warmup", job.optim().schedule().warmup(), job.model());
  if (job.checkpoint().has_every()) CheckDuration(check, "checkpoint.every", job.checkpoint().every(), job.model());
  if (job.eval().has_every()) CheckDuration(check, "eval.every", job.eval().every(), job.model());
  const auto& ema = job.optim().ema();
  if (job.optim().has_ema() && ema.horizon_case() == config::EmaConfig::HORIZON_NOT_SET)
    check.Add("optim.ema names no horizon; write optim.ema { decay: 0.999 } or { half_life { epochs: 0.1 } }");
  if (ema.has_half_life()) CheckDuration(check, "optim.ema.half_life", ema.half_life(), job.model());
  if (job.has_global_batch()) check.AddAll(CheckBatchGrowth(job, 0));
  const double final_ratio = job.optim().schedule().final_ratio();
  if (final_ratio < 0 || final_ratio > 1)
    check.Add(absl::StrCat("optim.schedule.final_ratio is ", final_ratio, "; it lies in [0, 1]"));
  if (job.parallel().has_recompute_blocks()) {
    if (job.parallel().recompute() == config::ParallelConfig::NONE)
      check.Add("parallel.recompute_blocks is given and parallel.recompute is NONE; set it to MLP or BLOCK");
    if (job.parallel().recompute_blocks() < 1)
      check.Add(absl::StrCat("parallel.recompute_blocks is ", job.parallel().recompute_blocks(), "; take 1 or more"));
  }
  if (job.parallel().zero() < 0 || job.parallel().zero() > 3) {
    check.Add(absl::StrCat("parallel.zero is ", job.parallel().zero(), "; the stages are 0 to 3, the nearest is ",
                           std::clamp(job.parallel().zero(), 0, 3)));
  }
  if (job.parallel().has_sequence()) CheckSequences(job, check);
  if (job.parallel().zero() == 3 && job.comm().fake())
    check.Add(
        "comm.fake is true and parallel.zero is 3, which computes with weights that other ranks send; take 0 to 2");
  if (job.runtime().device() == config::RuntimeConfig::CUDA)
    check.Add("runtime.device is CUDA, but this build has no CUDA back end; take runtime.device: CPU");
  if (job.runtime().has_threads_per_rank() && job.runtime().threads_per_rank() < 1)
    check.Add(absl::StrCat("runtime.threads_per_rank is ", job.runtime().threads_per_rank(), "; it needs 1 or more"));
  if (job.comm().deadline_seconds() <= 0)
    check.Add(absl::StrCat("comm.deadline_seconds is ", job.comm().deadline_seconds(), "; it must be above 0"));
  if (job.comm().bucket_mib() <= 0)
    check.Add(absl::StrCat("comm.bucket_mib is ", job.comm().bucket_mib(), "; it must be above 0"));
  if (job.checkpoint().keep() < 1)
    check.Add(absl::StrCat("checkpoint.keep is ", job.checkpoint().keep(), "; it needs 1 or more"));
  if (job.log().trace_first_step() < 1)
    check.Add(absl::StrCat("log.trace_first_step is ", job.log().trace_first_step(), "; it needs 1 or more"));
  if (job.log().trace_steps() < 1)
    check.Add(absl::StrCat("log.trace_steps is ", job.log().trace_steps(), "; it needs 1 or more"));
  if (job.log().spectral_every_steps() < 0)
    check.Add(absl::StrCat("log.spectral_every_steps is ", job.log().spectral_every_steps(), "; 0 is never"));
  if (job.log().every_steps() < 1)
    check.Add(absl::StrCat("log.every_steps is ", job.log().every_steps(), "; it needs 1 or more"));
  SHOAL_RETURN_IF_ERROR(check.Result());
  // Of a job that is sound otherwise: what it says of memory takes a dry run.
  if (ranks > 0) check.AddAll(CheckRanks(job, ranks));
  SHOAL_RETURN_IF_ERROR(check.Result());
  if (job.comm().has_compression()) SettleExactSteps(job);
  return job;
}

absl::Status CheckProcesses(const config::Job& job) {
  if (!job.comm().has_thread_link_mbit()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "comm.thread_link_mbit is of thread ranks (--local_ranks); for processes launch/virtual-cluster makes links");
}

ComputeChoice SettleCompute(const config::Job& job, WeakestHost weakest) {
  const auto asked = job.runtime().compute();
  if (asked != config::RuntimeConfig::AUTO) return {asked, ""};
  if (weakest == WeakestHost::kHasBf16)
    return {config::RuntimeConfig::BF16,
            "compute: auto takes bf16 (fp32 masters and sums): every rank's processor has the instructions"};
  return {config::RuntimeConfig::FP32, "compute: auto takes fp32: a rank's processor has no bf16 instructions"};
}

}  // namespace shoal
