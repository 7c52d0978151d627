// Which codec each parameter's gradient takes on its way between ranks, as `comm { compression }` says.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/codec/codec.h"
#include "comm/comm.pb.h"
#include "runtime/module/param.h"

namespace shoal {

struct GradientCodecs {
  std::vector<const Codec*> of;  // by Param::id, never null
  enum class Feedback : uint8_t { kNo, kYes } feedback = Feedback::kYes;
  config::CompressionConfig::Resume resume = config::CompressionConfig::FOLD;
  uint64_t seed = 0;  // of the run, for stochastic codecs
  std::vector<std::unique_ptr<Codec>> owned;

  // f32 bytes of all gradients, and of their codes.
  int64_t plain_bytes = 0, code_bytes = 0;
  // "q4: 10.6M of 10.8M elements; 6.0 MiB of 41.3 MiB travel".
  std::string Text() const;
};

// InvalidArgument, one error a line, each beginning with its field: unknown codecs, biased ones without error feedback,
// regular expressions that match nothing, options without a mode.
absl::Status CheckCompression(const config::CompressionConfig& config, const std::vector<const Param*>& params);
// Null when compression is off. `config` has passed CheckCompression.
std::shared_ptr<const GradientCodecs> MakeGradientCodecs(const config::CompressionConfig& config,
                                                         const std::vector<const Param*>& params, uint64_t seed);

}  // namespace shoal
