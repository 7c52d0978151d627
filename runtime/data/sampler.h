// Sampler: global position -> sample, a pure function of (seed, position). Any number of ranks sees the same sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/training_data.h"

namespace shoal {

// A pseudo-random permutation of [0, n): a four-round Feistel network on the next power of four, walked until inside.
class Permutation {
 public:
  Permutation(uint64_t seed, uint64_t stream, int64_t n);
  int64_t operator()(int64_t i) const;

 private:
  uint64_t seed_, stream_;
  int64_t n_;
  int half_bits_;
};

// Every dataset is shuffled anew in each of its epochs. Blends repeat a cycle of positions in which every dataset has
// its share by weight, spread evenly.
class Sampler {
 public:
  Sampler(const TrainingData& data, uint64_t seed);  // `data` outlives it
  const Sample& At(int64_t position) const;

 private:
  const TrainingData& data_;
  uint64_t seed_;
  std::vector<int> cycle_;          // dataset of each slot
  std::vector<int64_t> before_;     // how many earlier slots of the cycle have the same dataset
  std::vector<int64_t> per_cycle_;  // slots of each dataset
};

}  // namespace shoal
