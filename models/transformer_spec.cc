#include "models/transformer_spec.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shoal {

using config::TransformerConfig;

namespace {

void FillFromPreset(TransformerConfig& c) {
  const bool llama = c.preset() == TransformerConfig::LLAMA;
  if (!c.has_norm()) c.set_norm(llama ? TransformerConfig::RMS_NORM : TransformerConfig::LAYER_NORM);
  if (!c.has_positions()) c.set_positions(llama ? TransformerConfig::ROPE : TransformerConfig::LEARNED);
  if (!c.has_activation()) c.set_activation(llama ? TransformerConfig::SWIGLU : TransformerConfig::GELU);
  if (!c.has_biases()) c.set_biases(!llama);
  if (!c.has_tied_head()) c.set_tied_head(!llama);
}

int32_t NearestDivisor(int32_t value, int32_t wanted) {
  int32_t best = 1;
  for (int32_t d = 1; d <= value; ++d) {
    if (value % d == 0 && std::abs(d - wanted) <= std::abs(best - wanted)) best = d;
  }
  return best;
}

}  // namespace

absl::StatusOr<TransformerConfig> ResolveTransformer(TransformerConfig c, int32_t max_tokens) {
  std::vector<std::string> wrong;
  const auto positive = [&](const char* field, bool has, int64_t value) {
    if (!has)
      wrong.push_back(absl::StrCat("model.transformer.", field, " is not set; it needs a number of 1 or more"));
    else if (value < 1)
      wrong.push_back(absl::StrCat("model.transformer.", field, " is ", value, "; it needs 1 or more"));
  };
  positive("layers", c.has_layers(), c.layers());
  positive("width", c.has_width(), c.width());
  positive("heads", c.has_heads(), c.heads());
  positive("vocabulary", true, c.vocabulary());
  if (c.has_kv_heads()) positive("kv_heads", true, c.kv_heads());
  if (c.has_ffn()) positive("ffn", true, c.ffn());
  if (c.has_max_positions()) positive("max_positions", true, c.max_positions());
  FillFromPreset(c);
  if (wrong.empty()) {
    if (!c.has_kv_heads()) c.set_kv_heads(c.heads());
    if (!c.has_ffn())
      c.set_ffn(c.activation() == TransformerConfig::GELU ? 4 * c.width() : (8 * c.width() / 3 + 63) / 64 * 64);
    if (!c.has_max_positions()) c.set_max_positions(max_tokens);
    if (c.width() % c.heads() != 0) {
      wrong.push_back(absl::StrCat("model.transformer.heads is ", c.heads(), " and width is ", c.width(),
                                   "; heads must divide width, the nearest is ", NearestDivisor(c.width(), c.heads())));
    } else if (c.positions() == TransformerConfig::ROPE && HeadSize(c) % 2 != 0) {
      wrong.push_back(absl::StrCat("model.transformer: width ", c.width(), " / heads ", c.heads(),
                                   " gives heads of size ", HeadSize(c), "; rotary positions need an even size"));
    }
    if (c.heads() % c.kv_heads() != 0) {
      wrong.push_back(absl::StrCat("model.transformer.kv_heads is ", c.kv_heads(), " and heads is ", c.heads(),
                                   "; kv_heads must divide heads, the nearest is ",
                                   NearestDivisor(c.heads(), c.kv_heads())));
    }
    if (c.positions() == TransformerConfig::LEARNED && c.max_positions() < max_tokens) {
      wrong.push_back(
          absl::StrCat("model.transformer.max_positions is ", c.max_positions(), " and data.max_tokens is ", max_tokens,
                       "; learned positions must cover the longest sequence: raise the first or lower the second"));
    }
  }
  if (c.dropout() < 0 || c.dropout() >= 1)
    wrong.push_back(absl::StrCat("model.transformer.dropout is ", c.dropout(), "; it lies in [0, 1)"));
  if (c.norm_epsilon() <= 0)
    wrong.push_back(absl::StrCat("model.transformer.norm_epsilon is ", c.norm_epsilon(), "; it must be above 0"));
  if (c.init_std() <= 0)
    wrong.push_back(absl::StrCat("model.transformer.init_std is ", c.init_std(), "; it must be above 0"));
  if (!wrong.empty()) return absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
  // Defaults become explicit, so that a resolved job says everything.
  c.set_preset(c.preset());
  c.set_vocabulary(c.vocabulary());
  c.set_qk_norm(c.qk_norm());
  c.set_rope_theta(c.rope_theta());
  c.set_norm_epsilon(c.norm_epsilon());
  c.set_dropout(c.dropout());
  c.set_init_std(c.init_std());
  return c;
}

int64_t LookupParameterCount(const TransformerConfig& c) {
  int64_t count = 0;
  if (!c.tied_head()) count += int64_t{c.vocabulary()} * c.width();
  if (c.positions() == TransformerConfig::LEARNED) count += int64_t{c.max_positions()} * c.width();
  return count;
}

int64_t ParameterCount(const TransformerConfig& c) {
  const int64_t d = c.width(), qkv = (c.heads() + 2 * c.kv_heads()) * HeadSize(c), f = c.ffn();
  const int64_t norm = c.norm() == TransformerConfig::LAYER_NORM ? 2 * d : d;
  const int64_t inner = c.activation() == TransformerConfig::SWIGLU ? 2 * f : f;
  int64_t block = 2 * norm + qkv * d + d * d + inner * d + d * f;
  if (c.biases()) block += qkv + d + inner + d;
  if (c.qk_norm()) block += 2 * HeadSize(c);
  return LookupParameterCount(c) + int64_t{c.vocabulary()} * d + c.layers() * block + norm;
}

double TrainFlopsPerToken(const TransformerConfig& c, double mean_length) {
  return 6.0 * static_cast<double>(ParameterCount(c) - LookupParameterCount(c)) +
         6.0 * c.layers() * c.width() * mean_length;
}

}  // namespace shoal
