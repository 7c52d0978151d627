// Codec: fewer bytes for a run of f32 gradient elements, with error feedback.
//
// A run is a contiguous part of one tensor. What is encoded is x = gradient + residual_scale * residual, where the
// residual is what earlier codes of the same elements left behind; x - decoded is the new one (the rank's own, never
// the deviation from a mean: research/lgreco.md §0.5). Encoding never changes the old residual, so that a step that is
// skipped leaves no trace. All codecs are pure, thread-safe, and give the same bytes on every dispatch target.
//
// NaN and infinities: the code of a block that holds one decodes to NaN in all of its elements (a sparse code to NaN in
// its first one; fp32 and bf16 to what they were), so that every rank sees them; Encoded::finite says so to the
// encoder.
//
// All of this is on the host: pointers are to its memory, and Encode has done its work, sums included, when it returns.
// What a device needs of it holds already: a code's length follows from the run's (no size comes back before a
// collective can start), residuals are not changed, keys are counters, and the bytes are one format for all targets.
// What it does not have: a stream. On a device gradient, residual, left, code and out would be its pointers, Encode and
// Decode would take the stream that they are enqueued on, and Encoded and a family's errors would be written to memory
// of the device, to be copied once a step with the step's scalars: nothing else asks for them, since skipping a step is
// decided by the norm of what was decoded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace shoal {

// What stochastic rounding draws from: equal keys give equal codes, wherever the elements lie.
struct CodecKey {
  uint64_t seed = 0;    // of the run
  uint64_t tensor = 0;  // NameHash of its name
  uint32_t step = 0;
  enum class Point : uint8_t { kWorker, kOwner } point = Point::kWorker;  // before the sum over ranks, or after
  int32_t rank = 0;   // whose contribution: ranks round independently
  int64_t first = 0;  // of the run, inside the flattened tensor
};

struct CodecInput {
  const float* gradient = nullptr;
  const float* residual = nullptr;  // null: none
  float residual_scale = 1;
  int64_t size = 0;       // elements; 0 is legal
  float* left = nullptr;  // becomes x - decoded; null: not wanted. May be `gradient` itself.
};

struct Encoded {
  double squares = 0;        // sum of x^2
  double error_squares = 0;  // sum of (x - decoded)^2
  bool finite = true;        // every x is; when false the sums mean nothing and `left` holds any values
};

class Codec {
 public:
  virtual ~Codec() = default;
  // "fp32", "bf16", "q4", "q4_stochastic", "topk_0.01": as configurations and reports spell it.
  virtual absl::string_view name() const = 0;
  // decoded == x always.
  virtual bool exact() const = 0;
  // > 0: PowerSGD of that rank. Linear: no bytes, but factors, are summed over ranks by all-reduces; Bytes is 0, Encode
  // and Decode do nothing (parallel/factored_gradients.h).
  virtual int factor_rank() const { return 0; }
  // The code is the f32 elements themselves.
  virtual bool plain() const { return false; }
  // The mean of decoded over keys differs from x by more than a rounding to bf16: it needs error feedback.
  virtual bool biased() const = 0;
  // Elements that share a scale; blocks start at the run's first element. 1: none do.
  virtual int64_t block() const = 0;
  // Bytes of the code of `size` elements: a function of the size alone, so that receivers know it.
  virtual int64_t Bytes(int64_t size) const = 0;
  // Writes Bytes(input.size) bytes to `code`.
  virtual Encoded Encode(const CodecInput& input, const CodecKey& key, uint8_t* code) const = 0;
  enum class Into : uint8_t { kOverwrite, kAdd };
  // out (+)= decoded, in fp32.
  virtual void Decode(const uint8_t* code, int64_t size, Into into, float* out) const = 0;
};

// The codec of a name in CodecFamilies; blocks of max-min quantisers have `block` elements (a multiple of 8).
// InvalidArgument says what was asked and what there is.
absl::StatusOr<std::unique_ptr<Codec>> MakeCodec(absl::string_view name, int64_t block = 1024);

struct CodecName {
  absl::string_view text;  // "topk_0.01"
  double number = 0;       // 0.01: what stands where the family's spelling has <...>
  int64_t block = 1024;
};

// One row of the registry: MakeCodec, tests, benchmarks, calibration and planners go through it.
struct CodecFamily {
  absl::string_view name;      // "quantise", "topk"
  absl::string_view spelling;  // "q2..q8", "topk_<density>": what users are told; at <...> any number may stand
  // Its codecs: without <...> all there are, else those that are tested, measured and planned with. Cheapest first.
  absl::Span<const absl::string_view> codecs;
  absl::StatusOr<std::unique_ptr<Codec>> (*make)(const CodecName& name);
  // Squared errors of all of `codecs` over x in one pass over it, errors.size() == codecs.size(); an estimate from
  // block ranges or a histogram, within a few per cent of Encode's own. Returns sum of x^2; not finite where an x is
  // not. Null: there is no such pass, and planners choose among `codecs` only where a job names them.
  double (*errors)(const CodecInput& input, int64_t block, absl::Span<double> errors) = nullptr;
};
absl::Span<const CodecFamily> CodecFamilies();

}  // namespace shoal
