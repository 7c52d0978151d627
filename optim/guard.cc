#include "optim/guard.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace shoal {

bool Guard::Outlier(const std::deque<double>& window, double value) const {
  const double n = static_cast<double>(window.size());
  if (config_.z_score() <= 0 || n < std::max(8.0, 0.5 * config_.z_window())) return false;
  double mean = 0, variance = 0;
  for (double x : window) mean += x / n;
  for (double x : window) variance += (x - mean) * (x - mean) / n;
  return value > mean + config_.z_score() * std::sqrt(variance);
}

absl::StatusOr<std::string> Guard::Check(double loss, double grad_norm) {
  std::string why;
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) {
    why = absl::StrCat("not finite: loss ", loss, ", gradient norm ", grad_norm);
    if (!config_.skip_non_finite())
      return absl::AbortedError(absl::StrCat("diverged: ", why, "; optim.guard.skip_non_finite is off"));
  } else if (Outlier(losses_, loss)) {
    why = absl::StrCat("loss ", loss, " is more than ", config_.z_score(), " deviations out");
  } else if (Outlier(norms_, grad_norm)) {
    why = absl::StrCat("gradient norm ", grad_norm, " is more than ", config_.z_score(), " deviations out");
  }
  if (!why.empty()) {
    if (++skipped_ > config_.max_skipped()) {
      return absl::AbortedError(absl::StrCat(
          "diverged: ", skipped_, " steps in a row were skipped, the last because ", why,
          ". Lower optim.learning_rate or lengthen optim.schedule.warmup; the last checkpoint is from before"));
    }
    return why;
  }
  skipped_ = 0;
  for (auto [window, value] : {std::pair{&losses_, loss}, {&norms_, grad_norm}}) {
    window->push_back(value);
    if (static_cast<int>(window->size()) > config_.z_window()) window->pop_front();
  }
  return why;
}

void Guard::VisitState(StateVisitor& visitor) {
  visitor.Scalar("guard.skipped", skipped_);
  for (auto [name, window] : {std::pair{"guard.losses", &losses_}, {"guard.norms", &norms_}}) {
    std::string bytes(window->size() * sizeof(double), 0);
    for (size_t i = 0; i < window->size(); ++i) std::memcpy(&bytes[i * sizeof(double)], &(*window)[i], sizeof(double));
    visitor.Blob(name, bytes);
    window->resize(bytes.size() / sizeof(double));
    for (size_t i = 0; i < window->size(); ++i) std::memcpy(&(*window)[i], &bytes[i * sizeof(double)], sizeof(double));
  }
}

}  // namespace shoal
