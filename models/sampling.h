// Sampling from a language model: temperature, top-k, top-p, seed.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "models/transformer.h"

namespace shoal {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the likeliest token
  int32_t top_k = 0;         // 0: off; else only the k likeliest
  double top_p = 1;          // only the likeliest whose probabilities together reach p
  uint64_t seed = 1;
};

// One token from logits f32 [V]: `position` selects the random number, so equal seeds give equal text.
int32_t SampleToken(absl::Span<const float> logits, const SamplingOptions& options, int64_t position);

// Continues `prompt` (at least one token) by `count` tokens. The model sees at most its last `context` tokens.
// `ctx_options` names arena, parameters and threads; its mode is kEval.
std::vector<int32_t> Generate(Transformer& model, const StepContext::Options& ctx_options, std::vector<int32_t> prompt,
                              int64_t count, int64_t context, const SamplingOptions& options);

}  // namespace shoal
