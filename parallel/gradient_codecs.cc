#include "parallel/gradient_codecs.h"

#include <algorithm>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/factored_gradients.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

using config::CompressionConfig;

bool TravelsPlain(const CompressionConfig& config, const std::vector<Regex>& exempt, const Param& param) {
  return param.shape.size() < 2 || param.size() < config.min_elements() ||
         (param.param_class == ParamClass::kEmbedding && !config.embeddings()) ||
         std::any_of(exempt.begin(), exempt.end(), [&](const Regex& regex) { return regex.Matches(param.name); });
}

std::vector<Regex> ExemptOf(const CompressionConfig& config) {
  std::vector<Regex> exempt;
  for (const std::string& pattern : config.exempt()) exempt.push_back(Regex::Compile(pattern).value());
  return exempt;
}

absl::Status Joined(const std::vector<std::string>& errors) {
  return errors.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

void CheckExempt(const CompressionConfig& config, const std::vector<const Param*>& params,
                 std::vector<std::string>& errors) {
  for (const std::string& pattern : config.exempt()) {
    const auto regex = Regex::Compile(pattern);
    if (!regex.ok()) {
      errors.push_back(absl::StrCat("comm.compression.exempt: ", regex.status().message()));
    } else if (std::none_of(params.begin(), params.end(), [&](const Param* p) { return regex->Matches(p->name); })) {
      errors.push_back(absl::StrCat("comm.compression.exempt '", pattern, "' matches no parameter; the first is ",
                                    params.empty() ? "none" : params[0]->name));
    }
  }
}

}  // namespace

bool IsPlanned(const CompressionConfig& config) {
  return config.mode() == CompressionConfig::LGRECO_BYTES || config.mode() == CompressionConfig::LGRECO_TIME;
}

namespace {

// Sums of shares over micro-batches never show what is largest, or the factors, of a whole step's gradient.
bool WantsWhole(absl::string_view codec, int zero_stage) {
  return zero_stage >= 2 && (absl::StartsWith(codec, "topk_") || absl::StartsWith(codec, "powersgd_"));
}

// What layers choose among when the job does not say. Unbiased ones alone where nothing is kept of what codes leave
// out. Not PowerSGD: gradients gain rank faster than errors are measured (tests/performance.md).
std::vector<std::string> KnownOptions(const CompressionConfig& config, int zero_stage) {
  std::vector<std::string> names;
  for (const CodecFamily& family : CodecFamilies()) {
    if (family.errors == nullptr) continue;
    for (const absl::string_view name : family.codecs) {
      const bool biased = MakeCodec(name, config.block()).value()->biased();
      const bool stochastic = family.name == "quantise_stochastic";
      if (WantsWhole(name, zero_stage)) continue;
      if (config.error_feedback() ? !stochastic : !biased) names.emplace_back(name);
    }
  }
  return names;
}

// Of UNIFORM what the job says; planned modes take q5 and half of its squared error for their measure where it says
// nothing: losses of short runs of AdamW end 1 % to 2 % above those without codes at the error of q4, 0.25 % to 0.36 %
// at that of q5 (tests/performance.md).
std::string UniformCodec(const CompressionConfig& config) {
  if (config.has_codec() || !IsPlanned(config)) return config.codec();
  return config.error_feedback() ? "q5" : "q5_stochastic";
}

double ErrorBudget(const CompressionConfig& config) {
  constexpr double kOfDefault = 0.5;
  return config.has_error_budget() || config.has_codec() ? config.error_budget() : kOfDefault;
}

void CheckCodec(const CompressionConfig& config, const std::string& field, const std::string& name, int zero_stage,
                std::vector<std::string>& errors) {
  if (WantsWhole(name, zero_stage)) {
    errors.push_back(absl::StrCat(
        field, " is ", name, ", which takes gradients that are whole until the step is over; ",
        "parallel.zero: ", zero_stage,
        " reduces those of every micro-batch by themselves: ", "take parallel.zero: 0 or 1, or a codec like q4"));
  }
  const auto codec = MakeCodec(name, config.block());
  if (!codec.ok()) {
    errors.push_back(absl::StrCat(field, ": ", codec.status().message()));
  } else if ((*codec)->biased() && !config.error_feedback() && !config.force_biased()) {
    errors.push_back(absl::StrCat("comm.compression.error_feedback is false, but codec ", name,
                                  " is biased: what it leaves out would be lost for good; keep the feedback, take an "
                                  "unbiased codec (bf16, q4_stochastic), or say force_biased"));
  }
}

void CheckPlanning(const CompressionConfig& config, int zero_stage, std::vector<std::string>& errors) {
  const std::string prefix = "comm.compression.";
  if (!IsPlanned(config)) {
    for (const auto& [set, field] : {std::pair{config.options_size() > 0, "options"},
                                     {config.has_error_budget(), "error_budget"},
                                     {config.has_error_measure(), "error_measure"},
                                     {config.has_most_layer_error(), "most_layer_error"},
                                     {config.has_warmup_steps(), "warmup_steps"},
                                     {config.has_replan_every_steps(), "replan_every_steps"},
                                     {config.has_ramp_steps(), "ramp_steps"},
                                     {config.has_table_steps(), "table_steps"},
                                     {config.has_lead_steps(), "lead_steps"}}) {
      if (set)
        errors.push_back(absl::StrCat(prefix, field, " is of modes LGRECO_BYTES and LGRECO_TIME; mode is ",
                                      CompressionConfig::Mode_Name(config.mode())));
    }
    return;
  }
  for (const std::string& name : config.options()) {
    CheckCodec(config, prefix + "options", name, zero_stage, errors);
    if (const auto codec = MakeCodec(name, config.block());
        codec.ok() && (*codec)->factor_rank() > 0 && zero_stage == 1)
      errors.push_back(absl::StrCat(prefix, "options: ", name,
                                    " is planned by errors of whole sums, which parallel.zero: ", zero_stage,
                                    " does not have; take parallel.zero: 0"));
  }
  if (!(config.error_budget() > 0) || config.error_budget() > 100)
    errors.push_back(absl::StrCat(prefix, "error_budget is ", config.error_budget(),
                                  "; it is above 0 and at most 100, in squared errors of ", UniformCodec(config)));
  if (!(config.most_layer_error() > 0) || config.most_layer_error() >= 1)
    errors.push_back(
        absl::StrCat(prefix, "most_layer_error is ", config.most_layer_error(), "; it lies between 0 and 1"));
  if (config.table_steps() < 1)
    errors.push_back(absl::StrCat(prefix, "table_steps is ", config.table_steps(), "; it is at least 1"));
  if (config.lead_steps() < 1)
    errors.push_back(absl::StrCat(prefix, "lead_steps is ", config.lead_steps(), "; it is at least 1"));
  if (const int least = config.table_steps() + config.lead_steps(); config.warmup_steps() < least)
    errors.push_back(absl::StrCat(prefix, "warmup_steps is ", config.warmup_steps(),
                                  "; a plan takes table_steps + lead_steps = ", least));
  if (const int least = 2 * (config.table_steps() + config.lead_steps()); config.replan_every_steps() < least)
    errors.push_back(absl::StrCat(prefix, "replan_every_steps is ", config.replan_every_steps(),
                                  "; it is at least 2 (table_steps + lead_steps) = ", least));
  // A quarter of it is a plan's time.
  if (const int least = 4 * (config.table_steps() + config.lead_steps());
      config.ramp_steps() < 0 || (config.ramp_steps() > 0 && config.ramp_steps() < least))
    errors.push_back(absl::StrCat(prefix, "ramp_steps is ", config.ramp_steps(),
                                  "; it is 0, or at least 4 (table_steps + lead_steps) = ", least));
}

// A uniform rank must fit every matrix; planned ones fit where they are taken.
void CheckRanks(const CompressionConfig& config, const std::vector<const Param*>& params,
                std::vector<std::string>& errors) {
  const int rank = MakeCodec(UniformCodec(config), config.block()).value()->factor_rank();
  const std::vector<Regex> exempt = ExemptOf(config);
  for (const Param* param : params) {
    if (rank <= MostRank(*param) || TravelsPlain(config, exempt, *param)) continue;
    errors.push_back(absl::StrCat("comm.compression.codec is ", UniformCodec(config), ", but ", param->name, " ",
                                  ShapeString(param->shape), " has rank ", MostRank(*param),
                                  " at most; take that, or exempt it"));
    return;
  }
}

}  // namespace

int64_t CodeBytes(const Codec& codec, const Param& param) {
  return codec.factor_rank() > 0 ? FactorBytes(param, codec.factor_rank()) : codec.Bytes(param.size());
}

absl::Status CheckCompression(const CompressionConfig& config, const std::vector<const Param*>& params,
                              int zero_stage) {
  std::vector<std::string> errors;
  if (config.mode() == CompressionConfig::OFF) {
    if (config.has_codec())
      errors.push_back(
          absl::StrCat("comm.compression.codec is '", config.codec(), "', but mode is OFF; write mode: UNIFORM"));
    CheckPlanning(config, zero_stage, errors);
    return Joined(errors);
  }
  if (config.block() < 8 || config.block() % 8 != 0)
    errors.push_back(absl::StrCat("comm.compression.block is ", config.block(),
                                  "; it is a multiple of 8: ", std::max(8, (config.block() + 4) / 8 * 8)));
  if (UniformCodec(config).empty()) {
    errors.push_back("comm.compression.codec is not set; mode UNIFORM takes one, as codec: \"q4\"");
  } else if (errors.empty()) {
    CheckCodec(config, "comm.compression.codec", UniformCodec(config), zero_stage, errors);
    CheckPlanning(config, zero_stage, errors);
  }
  CheckExempt(config, params, errors);
  if (errors.empty()) CheckRanks(config, params, errors);
  return Joined(errors);
}

std::shared_ptr<const GradientCodecs> MakeGradientCodecs(const CompressionConfig& config,
                                                         const std::vector<const Param*>& params, uint64_t seed,
                                                         int zero_stage) {
  if (config.mode() == CompressionConfig::OFF) return nullptr;
  auto codecs = std::make_shared<GradientCodecs>();
  codecs->block = config.block();
  const auto own = [&](const std::string& name) {
    for (const auto& codec : codecs->owned) {
      if (codec->name() == name) return codec.get();
    }
    codecs->owned.push_back(MakeCodec(name, config.block()).value());
    return codecs->owned.back().get();
  };
  const Codec* const exact = own("fp32");
  const Codec* const uniform = own(UniformCodec(config));
  if (IsPlanned(config)) {
    const std::vector<std::string> names =
        config.options_size() > 0 ? std::vector<std::string>(config.options().begin(), config.options().end())
                                  : KnownOptions(config, zero_stage);
    codecs->options = {exact};
    for (const std::string& name : names) {
      if (std::find(codecs->options.begin(), codecs->options.end(), own(name)) == codecs->options.end())
        codecs->options.push_back(own(name));
    }
    auto at = std::find(codecs->options.begin(), codecs->options.end(), uniform);
    if (at == codecs->options.end()) at = codecs->options.insert(at, uniform);
    codecs->measuring = own("q8");
    codecs->uniform = static_cast<int>(at - codecs->options.begin());
    codecs->error_budget = ErrorBudget(config);
  }
  codecs->feedback = config.error_feedback() ? GradientCodecs::Feedback::kYes : GradientCodecs::Feedback::kNo;
  codecs->resume = config.resume();
  codecs->seed = seed;
  const std::vector<Regex> exempt = ExemptOf(config);
  for (const Param* param : params) {
    const bool plain = TravelsPlain(config, exempt, *param);
    const Codec* codec = plain ? exact : uniform;
    codecs->of.push_back(codecs->planned() ? exact : codec);
    if (!plain) codecs->layers.push_back(param->id);
    codecs->plain_bytes += param->size() * static_cast<int64_t>(sizeof(float));
    codecs->code_bytes += CodeBytes(*codec, *param);
  }
  return codecs;
}

double OptionErrors(const GradientCodecs& codecs, const CodecInput& input, absl::Span<double> errors) {
  CodecInput looked_at = input;
  looked_at.left = nullptr;
  double squares = 0;
  std::vector<bool> known(codecs.options.size());
  std::vector<double> of_family;
  for (const CodecFamily& family : CodecFamilies()) {
    if (family.errors == nullptr) continue;
    bool asked = false;
    of_family.resize(family.codecs.size());
    for (size_t o = 0; o < codecs.options.size(); ++o) {
      const auto at = std::find(family.codecs.begin(), family.codecs.end(), codecs.options[o]->name());
      if (at == family.codecs.end()) continue;
      if (!asked) squares = family.errors(looked_at, codecs.block, absl::MakeSpan(of_family));
      asked = known[o] = true;
      errors[o] = of_family[static_cast<size_t>(at - family.codecs.begin())];
    }
  }
  std::vector<uint8_t> code;
  for (size_t o = 0; o < codecs.options.size(); ++o) {
    if (known[o]) continue;
    errors[o] = 0;
    if (codecs.options[o]->exact() || codecs.options[o]->factor_rank() > 0) continue;
    code.resize(static_cast<size_t>(codecs.options[o]->Bytes(input.size)));
    const Encoded encoded = codecs.options[o]->Encode(looked_at, {}, code.data());
    errors[o] = encoded.error_squares;
    squares = encoded.finite ? encoded.squares : std::numeric_limits<double>::quiet_NaN();
  }
  return squares;
}

std::string GradientCodecs::Text() const {
  const std::string feedback_text = absl::StrCat(
      feedback == Feedback::kYes ? "with" : "without", " error feedback: ", HumanBytes(static_cast<double>(code_bytes)),
      " for ", HumanBytes(static_cast<double>(plain_bytes)), " of gradients");
  if (!planned()) return absl::StrCat(owned.back()->name(), ", ", feedback_text);
  return absl::StrCat("fp32 until they are planned among ", options.size(), " codecs for ", layers.size(),
                      " layers, at ", BudgetText(), " ", feedback_text);
}

std::string GradientCodecs::BudgetText() const {
  const absl::string_view name = options[uniform]->name();
  return error_budget == 1 ? absl::StrCat("the error of ", name)
                           : absl::StrCat(error_budget, " of the squared error of ", name);
}

}  // namespace shoal
