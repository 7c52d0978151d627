// TrainingData: datasets cut into samples. A sample is a run of one document with at most max_tokens predictions; n
// tokens give n - 1 predictions. Which documents are held out is decided before any cutting.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/runtime.pb.h"

namespace shoal {

// `predictions` inputs from token `begin` of a document; the labels are the tokens one further.
struct Sample {
  int32_t dataset = 0;
  int32_t predictions = 0;
  int64_t document = 0;
  int64_t begin = 0;
};

class TrainingData {
 public:
  // Opens every dataset (globs allowed for shards) and checks all tokens against `vocabulary`. DataLoss and NotFound
  // name file and document.
  static absl::StatusOr<std::unique_ptr<TrainingData>> Open(const config::DataConfig& config, int64_t vocabulary);

  int datasets() const { return static_cast<int>(train_.size()); }
  const std::vector<Sample>& train(int dataset) const { return train_[dataset]; }
  const std::vector<Sample>& held_out() const { return held_out_; }
  double weight(int dataset) const { return weights_[dataset]; }
  // Of all training samples together, once: an epoch.
  int64_t epoch_samples() const;
  int64_t epoch_tokens() const { return epoch_tokens_; }
  int32_t longest() const { return longest_; }  // predictions of the longest sample
  // tokens and labels hold sample.predictions each.
  void Read(const Sample& sample, int32_t* tokens, int32_t* labels) const;
  // What was opened, held out, cut and dropped, for the log.
  std::string Summary() const;

 private:
  absl::Status Cut(int dataset, int64_t document, const config::DataConfig& config, std::vector<Sample>& to);
  std::vector<std::unique_ptr<TokenDataset>> sources_;
  std::vector<double> weights_;
  std::vector<std::vector<Sample>> train_;
  std::vector<Sample> held_out_;
  int64_t epoch_tokens_ = 0;
  int32_t longest_ = 0;
  struct Counts {
    int64_t documents = 0, held_out = 0, split = 0, truncated = 0, dropped = 0, too_short = 0;
  } counts_;
};

}  // namespace shoal
