#include "optim/schedule.h"

#include <algorithm>
#include <cmath>

namespace shoal {

double Length(const config::Duration& d) {
  switch (d.unit_case()) {
    case config::Duration::kSteps:
      return static_cast<double>(d.steps());
    case config::Duration::kSamples:
      return static_cast<double>(d.samples());
    case config::Duration::kTokens:
      return static_cast<double>(d.tokens());
    case config::Duration::kEpochs:
      return d.epochs();
    case config::Duration::UNIT_NOT_SET:
      break;
  }
  return 0;
}

double RunProgress::In(const config::Duration& unit) const {
  switch (unit.unit_case()) {
    case config::Duration::kSamples:
      return static_cast<double>(samples);
    case config::Duration::kTokens:
      return static_cast<double>(tokens);
    case config::Duration::kEpochs:
      return epochs;
    default:
      return static_cast<double>(steps);
  }
}

double ScheduleFactor(const config::ScheduleConfig& schedule, const RunProgress& done, const config::Duration& total) {
  const double warmup = Length(schedule.warmup()), at = done.In(schedule.warmup());
  if (at < warmup) {
    // The step that is about to run counts: with warm-up in steps the factors are 1/n, 2/n, ..., 1.
    const double step = schedule.warmup().has_steps() || done.steps == 0 ? 1.0 : at / static_cast<double>(done.steps);
    return std::min(1.0, std::max(at + step, 1e-12) / warmup);
  }
  const double length = Length(total);
  // The warm-up's share of the run, when both are in one unit; else the shape spans the whole run.
  const double start = schedule.warmup().unit_case() == total.unit_case() ? std::min(warmup, length) : 0;
  const double x = length > start ? std::clamp((done.In(total) - start) / (length - start), 0.0, 1.0) : 1.0;
  const double low = schedule.final_ratio();
  switch (schedule.shape()) {
    case config::ScheduleConfig::COSINE:
      return low + (1 - low) * 0.5 * (1 + std::cos(3.14159265358979323846 * x));
    case config::ScheduleConfig::LINEAR:
      return 1 - (1 - low) * x;
    case config::ScheduleConfig::WSD: {
      const double decay = schedule.decay_fraction();
      return decay <= 0 || x < 1 - decay ? 1.0 : 1 - (1 - low) * (x - (1 - decay)) / decay;
    }
    case config::ScheduleConfig::CONSTANT:
      break;
  }
  return 1;
}

}  // namespace shoal
