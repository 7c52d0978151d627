#include "launch/straggler_watch.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace shoal {

void StragglerWatch::Note(absl::Span<const double> seconds, StepRecord& record) {
  if (seconds.size() < 2) return;
  slowest_.resize(seconds.size());
  const auto slowest = static_cast<size_t>(std::max_element(seconds.begin(), seconds.end()) - seconds.begin());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  ++steps_;
  ++slowest_[slowest];
  // A straggler is one that is a tenth behind, and mostly the same rank.
  const double share = static_cast<double>(slowest_[slowest]) / static_cast<double>(steps_);
  record.slowest_rank = absl::StrCat("rank ", slowest);
  record.slowest_share = share;
  if (seconds[slowest] > 1.1 * mean && share > 0.5 && steps_ >= 10) record.straggler = StepRecord::Straggler::kYes;
}

}  // namespace shoal
