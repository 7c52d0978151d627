// Loader: the batches of one rank, made ahead by a thread. A batch depends only on data, options and position; ranks
// differ only in which of its micro-batches they take. No token crosses a document and none is padding.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/data/sampler.h"
#include "runtime/data/training_data.h"

namespace shoal {

// Sequences one after the other.
struct MicroBatch {
  std::vector<int32_t> tokens, labels, positions;  // labels: the next token, -1 = ignored
  std::vector<int32_t> cu_seqlens;                 // sequences + 1
  std::vector<int64_t> sample_ids;                 // of each sequence: global sample position, over the whole run
  int32_t max_len = 0;
};

// Tokens [begin, end) of the `sample`-th of some samples.
struct SamplePart {
  int32_t sample = 0, begin = 0, end = 0;
};
// Parts one after the other, as sequences of their own whose positions start at `begin`; the label of a part's last
// token is the sample's next one. `first_id`: the id of the first of the samples, the others follow.
MicroBatch ReadParts(const TrainingData& data, absl::Span<const Sample> samples, int64_t first_id,
                     absl::Span<const SamplePart> parts);

struct StepBatch {
  int64_t first_position = 0, next_position = 0;  // of the sampler
  int64_t global_tokens = 0;                      // predictions over all ranks
  std::vector<Sample> samples;                    // of the global batch
  std::vector<int32_t> lengths;                   // of these
  std::vector<MicroBatch> micro;                  // this rank's, as many on every rank; some may be empty
};

struct LoaderOptions {
  config::Size global_batch;                // the unit of all batches, and what is made ahead first
  std::optional<config::Size> micro_batch;  // per rank; none: one micro-batch per step
  uint64_t seed = 1;
  int rank = 0, ranks = 1;
  int prefetch_steps = 4;
  enum class Repeat : uint8_t { kNo, kFirstBatch } repeat = Repeat::kNo;  // kFirstBatch: the position never moves
  enum class Share : uint8_t { kByTokens, kByOthers } share = Share::kByTokens;  // kByOthers: no micro-batches are made
};

// Which of `lengths` each (rank, micro-batch) takes: longest first into the emptiest, as few micro-batches per rank as
// the limit allows. [rank][micro] -> indices, ascending.
std::vector<std::vector<std::vector<int>>> ShareBatch(absl::Span<const int32_t> lengths, int ranks,
                                                      const std::optional<config::Size>& limit);

class Loader {
 public:
  // `data` outlives it. InvalidArgument when a sequence is longer than micro_batch's tokens.
  static absl::StatusOr<std::unique_ptr<Loader>> Create(const TrainingData& data, const LoaderOptions& options,
                                                        int64_t first_position);
  ~Loader();
  // The next batch of `global` units over all ranks, in order; waits for the prefetch thread. A number other than the
  // last one discards what was made ahead, so the step after a change waits for its batch.
  StepBatch Next(int64_t global);
  // The batch of `global` units at a position, without micro-batches. From any thread.
  StepBatch Draw(int64_t first_position, int64_t global) const;

 private:
  struct Shared;
  explicit Loader(std::unique_ptr<Shared> shared);
  std::unique_ptr<Shared> shared_;
};

// The samples of the first `max_tokens` held-out predictions (0: all).
std::vector<Sample> HeldOutSamples(const TrainingData& data, int64_t max_tokens);
// This rank's share of the first `max_tokens` held-out predictions (0: all), in micro-batches of about `micro_tokens`.
// All ranks together take the same sequences in the same micro-batches, whatever their number.
std::vector<MicroBatch> HeldOutBatches(const TrainingData& data, int64_t max_tokens, int64_t micro_tokens, int rank,
                                       int ranks);

}  // namespace shoal
