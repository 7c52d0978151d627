#include "runtime/data/loader.h"

#include <glog/logging.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

void Append(const TrainingData& data, Sample sample, int64_t id, int32_t begin, int32_t end, MicroBatch& to) {
  const size_t at = to.tokens.size();
  const int32_t n = end - begin;
  if (to.cu_seqlens.empty()) to.cu_seqlens.push_back(0);
  to.tokens.resize(at + n);
  to.labels.resize(at + n);
  to.positions.resize(at + n);
  sample.begin += begin;
  sample.predictions = n;
  data.Read(sample, to.tokens.data() + at, to.labels.data() + at);
  std::iota(to.positions.begin() + static_cast<int64_t>(at), to.positions.end(), begin);
  to.cu_seqlens.push_back(static_cast<int32_t>(to.tokens.size()));
  to.sample_ids.push_back(id);
  to.max_len = std::max(to.max_len, n);
}
void Append(const TrainingData& data, const Sample& sample, int64_t id, MicroBatch& to) {
  Append(data, sample, id, 0, sample.predictions, to);
}

}  // namespace

MicroBatch ReadParts(const TrainingData& data, absl::Span<const Sample> samples, int64_t first_id,
                     absl::Span<const SamplePart> parts) {
  MicroBatch read;
  read.cu_seqlens.push_back(0);
  for (const SamplePart& part : parts)
    Append(data, samples[part.sample], first_id + part.sample, part.begin, part.end, read);
  return read;
}

std::vector<std::vector<std::vector<int>>> ShareBatch(absl::Span<const int32_t> lengths, int ranks,
                                                      const std::optional<config::Size>& limit) {
  const bool by_tokens = limit.has_value() && limit->has_tokens();
  const bool by_count = limit.has_value() && limit->has_sequences();
  const int n = static_cast<int>(lengths.size());
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return lengths[a] > lengths[b]; });
  for (int micro = 1;; ++micro) {
    const int bins = ranks * micro;
    std::vector<int64_t> tokens(bins), count(bins);
    std::vector<std::vector<int>> in(bins);
    bool fits = true;
    for (int i : order) {
      int best = -1;
      for (int b = 0; b < bins; ++b) {
        if (by_count && count[b] >= limit->sequences()) continue;
        if (best < 0 || tokens[b] < tokens[best]) best = b;
      }
      // Alone in a micro-batch even an over-long sequence has its place; Create has refused it where it may not.
      if (best < 0 || (by_tokens && tokens[best] > 0 && tokens[best] + lengths[i] > limit->tokens())) {
        fits = false;
        break;
      }
      tokens[best] += lengths[i];
      ++count[best];
      in[best].push_back(i);
    }
    if (!fits && micro < n) continue;
    std::vector<std::vector<std::vector<int>>> share(ranks, std::vector<std::vector<int>>(micro));
    for (int b = 0; b < bins; ++b) {
      std::sort(in[b].begin(), in[b].end());
      share[b % ranks][b / ranks] = std::move(in[b]);
    }
    return share;
  }
}

struct Loader::Shared {
  Shared(const TrainingData& training_data, const LoaderOptions& loader_options, int64_t first)
      : data(training_data),
        options(loader_options),
        sampler(training_data, loader_options.seed),
        size(options.global_batch.has_tokens() ? options.global_batch.tokens() : options.global_batch.sequences()),
        position(first),
        taken(first) {}

  StepBatch Draw(int64_t first, int64_t global) const {
    StepBatch batch;
    batch.first_position = first;
    const bool by_tokens = options.global_batch.has_tokens();
    for (;;) {
      const Sample& next = sampler.At(first + static_cast<int64_t>(batch.samples.size()));
      if (by_tokens && !batch.samples.empty() && batch.global_tokens + next.predictions > global) break;
      batch.samples.push_back(next);
      batch.global_tokens += next.predictions;
      batch.lengths.push_back(next.predictions);
      if (!by_tokens && static_cast<int64_t>(batch.samples.size()) >= global) break;
    }
    CHECK_GT(batch.global_tokens, 0) << "losses are divided by the predictions of a batch";
    const bool repeats = options.repeat == LoaderOptions::Repeat::kFirstBatch;
    batch.next_position = repeats ? first : first + static_cast<int64_t>(batch.samples.size());
    return batch;
  }

  StepBatch Make(int64_t first, int64_t global) const {
    StepBatch batch = Draw(first, global);
    if (options.share == LoaderOptions::Share::kByOthers) return batch;
    const auto share = ShareBatch(batch.lengths, options.ranks, options.micro_batch);
    for (const std::vector<int>& chosen : share[options.rank]) {
      MicroBatch& micro = batch.micro.emplace_back();
      for (int i : chosen) Append(data, batch.samples[i], first + i, micro);
    }
    return batch;
  }

  void Produce() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return stop || static_cast<int>(ready.size()) < std::max(1, options.prefetch_steps); });
      if (stop) return;
      const int64_t first = position, global = size;
      lock.unlock();
      StepBatch batch = Make(first, global);
      lock.lock();
      if (first != position || global != size) continue;  // the size has changed meanwhile
      position = batch.next_position;
      ready.push_back(std::move(batch));
      changed.notify_all();
    }
  }

  const TrainingData& data;
  const LoaderOptions options;
  Sampler sampler;
  std::mutex mutex;
  std::condition_variable changed;
  int64_t size;             // of the batches made ahead, in the unit of options.global_batch
  int64_t position, taken;  // where the next batch to make begins; where the last one taken ended
  std::deque<StepBatch> ready;
  bool stop = false;
  std::thread thread;
};

Loader::Loader(std::unique_ptr<Shared> shared) : shared_(std::move(shared)) {
  shared_->thread = std::thread([this] { shared_->Produce(); });
}

Loader::~Loader() {
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->stop = true;
  }
  shared_->changed.notify_all();
  shared_->thread.join();
}

absl::StatusOr<std::unique_ptr<Loader>> Loader::Create(const TrainingData& data, const LoaderOptions& options,
                                                       int64_t first_position) {
  if (options.share == LoaderOptions::Share::kByTokens && options.micro_batch.has_value() &&
      options.micro_batch->has_tokens() && data.longest() > options.micro_batch->tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("micro_batch.tokens is ", options.micro_batch->tokens(), ", but the longest sequence has ",
                     data.longest(), " predictions: raise it to at least that, or lower data.max_tokens"));
  }
  return std::unique_ptr<Loader>(new Loader(std::make_unique<Shared>(data, options, first_position)));
}

StepBatch Loader::Next(int64_t global) {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  if (global != shared_->size) {
    shared_->size = global;
    shared_->position = shared_->taken;
    shared_->ready.clear();
    shared_->changed.notify_all();
  }
  shared_->changed.wait(lock, [&] { return !shared_->ready.empty(); });
  StepBatch batch = std::move(shared_->ready.front());
  shared_->ready.pop_front();
  shared_->taken = batch.next_position;
  lock.unlock();
  shared_->changed.notify_all();
  return batch;
}

StepBatch Loader::Draw(int64_t first_position, int64_t global) const { return shared_->Draw(first_position, global); }

std::vector<Sample> HeldOutSamples(const TrainingData& data, int64_t max_tokens) {
  std::vector<Sample> samples;
  int64_t seen = 0;
  for (const Sample& sample : data.held_out()) {
    if (max_tokens > 0 && seen > 0 && seen + sample.predictions > max_tokens) break;
    samples.push_back(sample);
    seen += sample.predictions;
  }
  return samples;
}

std::vector<MicroBatch> HeldOutBatches(const TrainingData& data, int64_t max_tokens, int64_t micro_tokens, int rank,
                                       int ranks) {
  std::vector<MicroBatch> mine;
  MicroBatch current;
  int64_t id = 0, number = 0;
  const auto close = [&] {
    if (!current.tokens.empty() && number++ % ranks == rank) mine.push_back(std::move(current));
    current = MicroBatch();
  };
  for (const Sample& sample : HeldOutSamples(data, max_tokens)) {
    if (static_cast<int64_t>(current.tokens.size()) + sample.predictions > micro_tokens) close();
    Append(data, sample, id++, current);
  }
  close();
  return mine;
}

}  // namespace shoal
