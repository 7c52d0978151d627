// Which codec each parameter's gradient takes on its way between ranks, as `comm { compression }` says.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/codec/codec.h"
#include "comm/comm.pb.h"
#include "runtime/module/param.h"

namespace shoal {

// Bytes of a parameter's whole code, or of its factors.
int64_t CodeBytes(const Codec& codec, const Param& param);

struct GradientCodecs {
  std::vector<const Codec*> of;  // by Param::id, never null; of planned modes, until there is a plan
  std::vector<int> layers;       // ids of the parameters that do not travel as they are, ascending
  // What planned modes choose among, the first being fp32, and which of them is the uniform default.
  std::vector<const Codec*> options;
  int uniform = 0;
  double error_budget = 1;           // squared error of a plan, relative to that of the uniform default
  const Codec* measuring = nullptr;  // what layers that travel as factors take while errors are measured
  int64_t block = 1024;              // of quantisers
  enum class Feedback : uint8_t { kNo, kYes } feedback = Feedback::kYes;
  config::CompressionConfig::Resume resume = config::CompressionConfig::FOLD;
  uint64_t seed = 0;  // of the run, for stochastic codecs
  std::vector<std::unique_ptr<Codec>> owned;

  // f32 bytes of all gradients, and of their codes (planned modes: of the uniform default's).
  int64_t plain_bytes = 0, code_bytes = 0;
  bool planned() const { return !options.empty(); }
  // Of planned modes: "the error of q4", "0.5 of the squared error of q5".
  std::string BudgetText() const;
  // "q4, with error feedback: 5.6 MiB for 41.3 MiB of gradients".
  std::string Text() const;
};

// Squared errors that each of codecs.options would make of `input`: whole families in one pass, others by encoding.
// Returns the sum of x^2; not finite where an x is not. Factors are left out: their errors are those of whole sums.
double OptionErrors(const GradientCodecs& codecs, const CodecInput& input, absl::Span<double> errors);

// LGRECO_BYTES and LGRECO_TIME.
bool IsPlanned(const config::CompressionConfig& config);
// InvalidArgument, one error a line, each beginning with its field: unknown codecs, biased ones without error feedback,
// regular expressions that match nothing, options without a mode, codecs that want a step's gradients whole (topk,
// powersgd) where ZeRO 2 and 3 reduce those of each micro-batch.
absl::Status CheckCompression(const config::CompressionConfig& config, const std::vector<const Param*>& params,
                              int zero_stage);
// Null when compression is off. `config` has passed CheckCompression.
std::shared_ptr<const GradientCodecs> MakeGradientCodecs(const config::CompressionConfig& config,
                                                         const std::vector<const Param*>& params, uint64_t seed,
                                                         int zero_stage = 1);

}  // namespace shoal
