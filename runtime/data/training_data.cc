#include "runtime/data/training_data.h"

#include <glob.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

std::vector<std::string> Expand(const std::string& pattern) {
  if (pattern.find_first_of("*?[") == std::string::npos) return {pattern};
  std::vector<std::string> paths;
  glob_t found = {};
  if (::glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  return paths;
}

// In [0, 1), by dataset and document alone, so that the held-out set is the same for every seed and run.
double Lot(int dataset, int64_t document) {
  return Rng({0, RngPurpose::kData, NameHash("held_out")})
      .Uniform53(static_cast<uint64_t>(dataset), static_cast<uint64_t>(document));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingData>> TrainingData::Open(const config::DataConfig& config, int64_t vocabulary) {
  if (config.dataset_size() == 0)
    return absl::NotFoundError(
        "data.dataset: none is given; build one with `shoal data build` and name its prefix in `dataset { path: }`");
  auto data = std::make_unique<TrainingData>();
  for (const auto& entry : config.dataset()) {
    const std::vector<std::string> paths = Expand(entry.path());
    if (paths.empty())
      return absl::NotFoundError(absl::StrCat("data.dataset.path ", entry.path(), ": nothing matches"));
    for (const std::string& path : paths) {
      SHOAL_ASSIGN_OR_RETURN(auto source, TokenDataset::Open(path));
      SHOAL_RETURN_IF_ERROR(source->CheckTokens(vocabulary));
      data->sources_.push_back(std::move(source));
      data->weights_.push_back(entry.weight() / static_cast<double>(paths.size()));
    }
  }
  int64_t least_dataset = 0, least_document = 0;
  double least = 2;
  data->train_.resize(data->sources_.size());
  for (size_t s = 0; s < data->sources_.size(); ++s) {
    const int dataset = static_cast<int>(s);
    data->counts_.documents += data->sources_[s]->documents();
    for (int64_t d = 0; d < data->sources_[s]->documents(); ++d) {
      const double lot = config.held_out() > 0 ? Lot(dataset, d) : 2;
      if (lot < least) least = lot, least_dataset = dataset, least_document = d;
    }
  }
  // A small collection still gives one document to evaluation.
  const double border = std::max(config.held_out(), std::min(least * (1 + 1e-9) + 1e-300, 1.0));
  if (config.held_out() > 0 && data->counts_.documents < 2) {
    return absl::DataLossError(absl::StrCat("data.held_out is ", config.held_out(), ", but there is only 1 document, ",
                                            data->sources_[least_dataset]->path(), " #", least_document,
                                            "; set data.held_out: 0 or give more documents"));
  }
  for (size_t s = 0; s < data->sources_.size(); ++s) {
    const int dataset = static_cast<int>(s);
    for (int64_t d = 0; d < data->sources_[s]->documents(); ++d) {
      const bool held_out = config.held_out() > 0 && Lot(dataset, d) < border;
      if (held_out) ++data->counts_.held_out;
      SHOAL_RETURN_IF_ERROR(data->Cut(dataset, d, config, held_out ? data->held_out_ : data->train_[s]));
    }
    if (data->train_[s].empty()) {
      return absl::DataLossError(absl::StrCat(data->sources_[s]->path(), ": no training sample is left of ",
                                              data->sources_[s]->documents(), " documents (", data->Summary(), ")"));
    }
    for (const Sample& sample : data->train_[s]) {
      data->epoch_tokens_ += sample.predictions;
      data->longest_ = std::max(data->longest_, sample.predictions);
    }
  }
  return data;
}

absl::Status TrainingData::Cut(int dataset, int64_t document, const config::DataConfig& config,
                               std::vector<Sample>& to) {
  const int64_t predictions = sources_[dataset]->length(document) - 1, most = config.max_tokens();
  if (predictions < 1) {
    ++counts_.too_short;
    return absl::OkStatus();
  }
  const auto add = [&](int64_t begin, int64_t count) {
    to.push_back({dataset, static_cast<int32_t>(count), document, begin});
  };
  if (predictions <= most) {
    add(0, predictions);
    return absl::OkStatus();
  }
  switch (config.over_long()) {
    case config::DataConfig::SPLIT:
      ++counts_.split;
      for (int64_t begin = 0; begin < predictions; begin += most) add(begin, std::min(most, predictions - begin));
      break;
    case config::DataConfig::TRUNCATE:
      ++counts_.truncated;
      add(0, most);
      break;
    case config::DataConfig::DROP:
      ++counts_.dropped;
      break;
    case config::DataConfig::ERROR:
      return absl::DataLossError(absl::StrCat(
          sources_[dataset]->path(), ": document ", document, " has ", predictions, " predictions; data.max_tokens is ",
          most, " and data.over_long is ERROR. Raise the first or choose SPLIT, TRUNCATE or DROP"));
  }
  return absl::OkStatus();
}

int64_t TrainingData::epoch_samples() const {
  int64_t count = 0;
  for (const auto& samples : train_) count += static_cast<int64_t>(samples.size());
  return count;
}

void TrainingData::Read(const Sample& sample, int32_t* tokens, int32_t* labels) const {
  std::vector<int32_t> run(sample.predictions + 1);
  sources_[sample.dataset]->Read(sample.document, sample.begin, absl::MakeSpan(run));
  std::copy_n(run.data(), sample.predictions, tokens);
  std::copy_n(run.data() + 1, sample.predictions, labels);
}

std::string TrainingData::Summary() const {
  std::string text = absl::StrCat(counts_.documents, " documents (", counts_.held_out, " held out), ", epoch_samples(),
                                  " training sequences, ", epoch_tokens_, " predictions per epoch");
  for (const auto& [count, what] : {std::pair{counts_.split, "split"},
                                    {counts_.truncated, "truncated"},
                                    {counts_.dropped, "over-long and dropped"},
                                    {counts_.too_short, "shorter than 2 tokens and dropped"}}) {
    if (count > 0) absl::StrAppend(&text, ", ", count, " ", what);
  }
  return text;
}

}  // namespace shoal
