// Random models and batches of sequences, and the best plan by trying all: for tests of planners and of their bounds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "parallel/sequence_plan.h"
#include "runtime/base/rng.h"

namespace shoal::sequence_cases {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kRounding = 1 + 1e-9;

class Draws {
 public:
  explicit Draws(uint64_t seed) : rng_({seed, RngPurpose::kTest, 1}) {}
  double Uniform() { return rng_.Uniform53(0, at_++); }
  double Normal() { return static_cast<double>(rng_.Normal(1, at_++)); }
  int Below(int n) { return static_cast<int>(Uniform() * n); }

 private:
  Rng rng_;
  uint64_t at_ = 0;
};

// 100 tokens a rank; about as long for exchanges as for products at degree 8.
inline SequenceCostModel SmallModel() {
  return {.quadratic = 1e-5,
          .linear = 1e-3,
          .fixed = 0.02,
          .exchange_bytes_per_token = 1000,
          .bandwidth = {8e6, 6e6, 1e6},
          .tokens_per_rank = 100};
}

// All numbers drawn, also bandwidths that do not fall with the degree.
inline SequenceCostModel RandomModel(Draws& draw) {
  SequenceCostModel model = SmallModel();
  model.quadratic *= std::exp(2 * draw.Normal());
  model.linear *= std::exp(draw.Normal());
  model.fixed *= draw.Below(3);
  for (double& b : model.bandwidth) b *= std::exp(draw.Normal());
  if (draw.Below(4) == 0) model.bandwidth.clear();
  if (draw.Below(4) == 0) model.max_degree = 4;
  return model;
}

// Long-tailed lengths of up to `most` tokens.
inline std::vector<int32_t> RandomLengths(Draws& draw, int sequences, int64_t most) {
  std::vector<int32_t> lengths;
  for (int k = 0; k < sequences; ++k) {
    const double length = std::exp(2.5 + 1.5 * draw.Normal());
    lengths.push_back(static_cast<int32_t>(std::clamp(length, 1.0, static_cast<double>(most))));
  }
  return lengths;
}

inline int64_t Capacity(const SequenceCostModel& model, int ranks) {
  return model.LargestDegree(ranks) * model.tokens_per_rank;
}

inline std::string Case(absl::Span<const int32_t> lengths, int ranks, uint64_t seed) {
  return absl::StrCat("seed ", seed, ", ", ranks, " ranks, lengths ", absl::StrJoin(lengths, " "));
}

// The shortest step of any plan, over all subsets.
class BruteForce {
 public:
  BruteForce(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model)
      : lengths_(lengths), ranks_(ranks), model_(model), all_((1u << lengths.size()) - 1) {}

  double Optimum() const {
    std::vector<double> best(all_ + 1, kInfinity);
    best[0] = 0;
    std::vector<std::vector<double>> load(all_ + 1, std::vector<double>(static_cast<size_t>(ranks_) + 1, -1));
    for (unsigned set = 1; set <= all_; ++set) {
      for (unsigned part = set; part > 0; part = (part - 1) & set)
        best[set] = std::min(best[set], best[set & ~part] + model_.fixed + Load(part, ranks_, load));
    }
    return best[all_];
  }

 private:
  // The least load of a micro-batch of these sequences on this many ranks.
  double Load(unsigned set, int ranks, std::vector<std::vector<double>>& known) const {
    if (set == 0) return 0;
    double& load = known[set][static_cast<size_t>(ranks)];
    if (load >= 0) return load;
    double best = kInfinity;
    for (unsigned group = set; group > 0; group = (group - 1) & set) {
      if ((group & (set & -set)) == 0) continue;  // the group of the first one
      for (int degree = 1; degree <= std::min(ranks, model_.max_degree); degree *= 2) {
        int64_t tokens = 0;
        double seconds = 0;
        for (size_t k = 0; k < lengths_.size(); ++k) {
          if ((group >> k & 1) == 0) continue;
          tokens += lengths_[k];
          seconds += model_.Seconds(lengths_[k], degree);
        }
        if (tokens > degree * model_.tokens_per_rank) continue;
        best = std::min(best, std::max(seconds, Load(set & ~group, ranks - degree, known)));
      }
    }
    return load = best;
  }

  absl::Span<const int32_t> lengths_;
  int ranks_;
  const SequenceCostModel& model_;
  unsigned all_;
};

}  // namespace shoal::sequence_cases
