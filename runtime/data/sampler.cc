#include "runtime/data/sampler.h"

#include "runtime/base/rng.h"

namespace shoal {

Permutation::Permutation(uint64_t seed, uint64_t stream, int64_t n)
    : seed_(seed), stream_(stream), n_(n), half_bits_(1) {
  while ((int64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
}

int64_t Permutation::operator()(int64_t i) const {
  const Rng rng({seed_, RngPurpose::kShuffle, stream_});
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  auto at = static_cast<uint64_t>(i);
  do {
    uint64_t left = at >> half_bits_, right = at & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t mixed = left ^ (rng.Words(round, right)[0] & mask);
      left = right;
      right = mixed;
    }
    at = left << half_bits_ | right;
  } while (at >= static_cast<uint64_t>(n_));
  return static_cast<int64_t>(at);
}

Sampler::Sampler(const TrainingData& data, uint64_t seed) : data_(data), seed_(seed), per_cycle_(data.datasets()) {
  constexpr int kCycle = 4096;
  double total = 0;
  for (int d = 0; d < data.datasets(); ++d) total += data.weight(d);
  const int slots = data.datasets() == 1 ? 1 : kCycle;
  for (int s = 0; s < slots; ++s) {
    // The dataset that is furthest behind its share.
    int chosen = 0;
    double behind = -1e300;
    for (int d = 0; d < data.datasets(); ++d) {
      const double lag = data.weight(d) / total * (s + 1) - static_cast<double>(per_cycle_[d]);
      if (lag > behind) behind = lag, chosen = d;
    }
    cycle_.push_back(chosen);
    before_.push_back(per_cycle_[chosen]++);
  }
}

const Sample& Sampler::At(int64_t position) const {
  const auto slots = static_cast<int64_t>(cycle_.size());
  const int dataset = cycle_[position % slots];
  const std::vector<Sample>& samples = data_.train(dataset);
  const int64_t index = position / slots * per_cycle_[dataset] + before_[position % slots],
                n = static_cast<int64_t>(samples.size());
  const uint64_t stream = static_cast<uint64_t>(dataset) << 40 | static_cast<uint64_t>(index / n);
  return samples[Permutation(seed_, stream, n)(index % n)];
}

}  // namespace shoal
