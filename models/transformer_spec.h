// TransformerSpec: a transformer's dimensions with every default settled.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "models/models.pb.h"

namespace shoal {

// Fills what the job leaves unset: from the preset (GPT2: LayerNorm, learned positions, GELU, biases, tied head; LLAMA:
// RMSNorm, RoPE, SwiGLU, none of the others), then kv_heads = heads, ffn = 4 width (GELU) or 8/3 width rounded up to a
// multiple of 64 (SWIGLU), max_positions = `max_tokens`. The result has every field set. InvalidArgument names each
// combination that cannot be, with the nearest one that can, joined by newlines.
absl::StatusOr<config::TransformerConfig> ResolveTransformer(config::TransformerConfig config, int32_t max_tokens);

// Size of one head of a resolved config.
inline int64_t HeadSize(const config::TransformerConfig& config) { return config.width() / config.heads(); }
// Trained parameters; of these, in lookup tables only (token and position tables; a tied head's table counts as a
// matrix, since it is multiplied with).
int64_t ParameterCount(const config::TransformerConfig& config);
int64_t LookupParameterCount(const config::TransformerConfig& config);
// FLOPs of one training step per token at sequence length T: 6 (parameters - lookup) + 6 layers width T; no credit for
// recomputation (the figure's definition of mfu).
double TrainFlopsPerToken(const config::TransformerConfig& config, double mean_length);

}  // namespace shoal
