#include "parallel/gradient_codecs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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

absl::Status CheckCompression(const CompressionConfig& config, const std::vector<const Param*>& params) {
  std::vector<std::string> errors;
  if (config.mode() == CompressionConfig::OFF) {
    if (config.has_codec())
      errors.push_back(
          absl::StrCat("comm.compression.codec is '", config.codec(), "', but mode is OFF; write mode: UNIFORM"));
    return Joined(errors);
  }
  if (config.block() < 8 || config.block() % 8 != 0)
    errors.push_back(absl::StrCat("comm.compression.block is ", config.block(),
                                  "; it is a multiple of 8: ", std::max(8, (config.block() + 4) / 8 * 8)));
  if (!config.has_codec()) {
    errors.push_back("comm.compression.codec is not set; mode UNIFORM takes one, as codec: \"q4\"");
  } else if (errors.empty()) {
    const auto codec = MakeCodec(config.codec(), config.block());
    if (!codec.ok()) {
      errors.push_back(absl::StrCat("comm.compression.codec: ", codec.status().message()));
    } else if ((*codec)->biased() && !config.error_feedback() && !config.force_biased()) {
      errors.push_back(absl::StrCat("comm.compression.error_feedback is false, but codec ", config.codec(),
                                    " is biased: what it leaves out would be lost for good; keep the feedback, take an "
                                    "unbiased codec (",
                                    config.codec().substr(0, 2), "_stochastic), or say force_biased"));
    }
  }
  CheckExempt(config, params, errors);
  return Joined(errors);
}

std::shared_ptr<const GradientCodecs> MakeGradientCodecs(const CompressionConfig& config,
                                                         const std::vector<const Param*>& params, uint64_t seed) {
  if (config.mode() == CompressionConfig::OFF) return nullptr;
  auto codecs = std::make_shared<GradientCodecs>();
  codecs->owned.push_back(MakeCodec("fp32").value());
  codecs->owned.push_back(MakeCodec(config.codec(), config.block()).value());
  codecs->feedback = config.error_feedback() ? GradientCodecs::Feedback::kYes : GradientCodecs::Feedback::kNo;
  codecs->resume = config.resume();
  codecs->seed = seed;
  std::vector<Regex> exempt;
  for (const std::string& pattern : config.exempt()) exempt.push_back(Regex::Compile(pattern).value());
  for (const Param* param : params) {
    const Codec* codec = codecs->owned[TravelsPlain(config, exempt, *param) ? 0 : 1].get();
    codecs->of.push_back(codec);
    codecs->plain_bytes += param->size() * static_cast<int64_t>(sizeof(float));
    codecs->code_bytes += codec->Bytes(param->size());
  }
  return codecs;
}

std::string GradientCodecs::Text() const {
  return absl::StrCat(owned.back()->name(), ", ", feedback == Feedback::kYes ? "with" : "without",
                      " error feedback: ", HumanBytes(static_cast<double>(code_bytes)), " for ",
                      HumanBytes(static_cast<double>(plain_bytes)), " of gradients");
}

}  // namespace shoal
