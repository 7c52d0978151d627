// How large a batch should be, from the norms of gradients of its parts: the norm test of AdAdaGrad (arXiv 2402.11215,
// distributed as in 2412.21124) and the gradient noise scale (arXiv 1812.06162). Pure: no communication, no clock.
//
// A sample is what is drawn independently: an image or a document. Norms are taken before codecs and clipping, of
// parameters that every sample reaches (expert weights are left out).
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "optim/optim.pb.h"
#include "parallel/state.h"

namespace shoal {

// The number of a Size, in its own unit.
int64_t Count(const config::Size& size);

// Sums over the groups of samples whose gradients were seen alone: each rank (or sequence group), or the micro-batches
// of a lone one. All three are added up over groups and over ranks: one all-reduce of three values.
struct NoiseTerms {
  double scaled_squares = 0;  // sum of ||h_j||^2 / n_j
  double groups = 0;          // M
  double samples = 0;         // n
  // h_j: the group's part of the global gradient G, already divided by all of n, so that the h_j sum up to G.
  void Add(double squared_norm, double samples_of_group);
};

struct GradientNoise {
  double trace = 0;         // of the covariance Sigma of one sample's gradient
  double squared_norm = 0;  // ||G||^2 of the batch, which exceeds the true gradient's by trace / samples on average
  double samples = 0;
  // tr(Sigma) over the squared norm of the true gradient: the batch beyond which more samples help little. Infinite
  // when the batch is too small to see a gradient in the noise.
  double NoiseScale() const;
};

// tr(Sigma) = n (sum_j (n / n_j) ||h_j||^2 - ||G||^2) / (M - 1): exact in expectation for groups of any sizes. `terms`
// of all ranks, `squared_norm` = ||G||^2. InvalidArgument for fewer than two groups. Estimates below 0 become 0.
absl::StatusOr<GradientNoise> EstimateNoise(const NoiseTerms& terms, double squared_norm);

// The batch of a run that grows by the norm test; never shrinks.
class BatchGrowth : public Stateful {
 public:
  // `batch` and `max` in the unit of global_batch. A batch above max stays.
  BatchGrowth(const config::BatchGrowthConfig& config, int64_t batch, int64_t max);

  // Whether noise is to be measured in this step (1 at the first): every test_every steps until the cap is reached.
  bool Tests(int64_t step) const;
  // The batch from the next step on: max(batch, batch trace / (eta^2 ||G||^2) / samples), rounded up to `multiple`, at
  // most the largest multiple within max. `noise` is of a step of the present batch.
  int64_t Update(const GradientNoise& noise, int64_t multiple);
  int64_t batch() const { return batch_; }
  // A checkpoint without it leaves the first batch, and so does a smaller one.
  void VisitState(StateVisitor& visitor) override;

 private:
  config::BatchGrowthConfig config_;
  int64_t first_, batch_, max_;
  int64_t tests_ = 0;
  double trace_ = 0, squared_norm_ = 0;  // smoothed
};

}  // namespace shoal
