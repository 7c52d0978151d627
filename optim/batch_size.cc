#include "optim/batch_size.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace shoal {

int64_t Count(const config::Size& size) {
  switch (size.unit_case()) {
    case config::Size::kTokens:
      return size.tokens();
    case config::Size::kSequences:
      return size.sequences();
    case config::Size::kImages:
      return size.images();
    case config::Size::UNIT_NOT_SET:
      break;
  }
  return 0;
}

void NoiseTerms::Add(double squared_norm, double samples_of_group) {
  if (samples_of_group <= 0) return;
  scaled_squares += squared_norm / samples_of_group;
  groups += 1;
  samples += samples_of_group;
}

double GradientNoise::NoiseScale() const {
  const double of_truth = squared_norm - trace / samples;
  return of_truth > 0 ? trace / of_truth : std::numeric_limits<double>::infinity();
}

absl::StatusOr<GradientNoise> EstimateNoise(const NoiseTerms& terms, double squared_norm) {
  if (terms.groups < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("gradient noise is measured between groups of samples, and this step has ", terms.groups,
                     "; run 2 ranks or more, or a micro_batch of at most half of a rank's share"));
  }
  const double n = terms.samples;
  const double trace = n * (n * terms.scaled_squares - squared_norm) / (terms.groups - 1);
  return GradientNoise{.trace = std::max(trace, 0.0), .squared_norm = squared_norm, .samples = n};
}

BatchGrowth::BatchGrowth(const config::BatchGrowthConfig& config, int64_t batch, int64_t max)
    : config_(config), first_(batch), batch_(batch), max_(std::max(batch, max)) {}

bool BatchGrowth::Tests(int64_t step) const { return batch_ < max_ && step % config_.test_every() == 0; }

int64_t BatchGrowth::Update(const GradientNoise& noise, int64_t multiple) {
  const double old = tests_++ == 0 ? 0 : config_.smoothing();
  trace_ = old * trace_ + (1 - old) * noise.trace;
  squared_norm_ = old * squared_norm_ + (1 - old) * noise.squared_norm;
  if (trace_ <= 0) return batch_;
  const double samples = trace_ / (config_.eta() * config_.eta() * squared_norm_);
  const double wanted = static_cast<double>(batch_) * samples / noise.samples;
  // Compared as doubles first: without a gradient the wish is infinite.
  int64_t batch = wanted >= static_cast<double>(max_) ? max_ : static_cast<int64_t>(std::ceil(wanted));
  batch = (batch + multiple - 1) / multiple * multiple;
  if (batch > max_) batch = max_ / multiple * multiple;
  batch_ = std::max(batch_, batch);
  return batch_;
}

void BatchGrowth::VisitState(StateVisitor& visitor) {
  if (!visitor.Has("batch_growth.batch")) {
    *this = BatchGrowth(config_, first_, max_);
    return;
  }
  visitor.Scalar("batch_growth.batch", batch_);
  batch_ = std::max(batch_, first_);
  visitor.Scalar("batch_growth.tests", tests_);
  visitor.Scalar("batch_growth.trace", trace_);
  visitor.Scalar("batch_growth.squared_norm", squared_norm_);
}

}  // namespace shoal
