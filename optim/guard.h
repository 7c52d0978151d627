// Guards: which steps are skipped. Decided from values that are equal on all ranks, so all decide alike.
#pragma once

#include <deque>
#include <string>

#include "absl/status/statusor.h"
#include "optim/optim.pb.h"
#include "parallel/state.h"

namespace shoal {

class Guard : public Stateful {
 public:
  explicit Guard(const config::GuardConfig& config) : config_(config) {}
  // Empty: take the step. Otherwise why it is skipped. Aborted (diverged, exit 6) after max_skipped in a row, or at
  // once when skip_non_finite is off and a value is not finite.
  absl::StatusOr<std::string> Check(double loss, double grad_norm);
  void VisitState(StateVisitor& visitor) override;

 private:
  // Whether `value` is more than z_score standard deviations above the window's mean.
  bool Outlier(const std::deque<double>& window, double value) const;
  config::GuardConfig config_;
  std::deque<double> losses_, norms_;  // of the last z_window steps that were taken
  int64_t skipped_ = 0;                // in a row
};

}  // namespace shoal
