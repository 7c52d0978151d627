// SequenceCostFit: fits the coefficients of a SequenceCostModel to the times that steps really took.
//
// Of a group of degree d: seconds = fixed + (quadratic sum s^2 + linear sum s) / d + exchange_d sum s / d, where
// exchange_d = exchange_bytes_per_token / bandwidth_d; linear in its coefficients. Least squares of relative residuals
// over all groups so far, those of a step counting 0.98 times those of the next one (0.8 while residuals stay above 15
// %: the machine is not what it was). Unknowns are what each coefficient is over its start, none negative.
//  - What was never observed keeps its ratio to its neighbours at the start: weak terms pull each unknown to a
//    neighbour's (exchange of a degree to that of the degree below, the others to `linear`), and `linear`, more weakly,
//    to 1.
//  - Huber's weights: groups further off than a multiple of recent steps' typical residual pull like those at that
//    distance, so a hiccup does little, and a change that stays makes itself the typical residual.
//
// Pure: no clock, no communication; equal inputs in equal order give equal models on every rank (arithmetic and square
// roots only, which IEEE defines to the last bit).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "parallel/sequence_plan.h"

namespace shoal {

class SequenceCostFit {
 public:
  // kFixed: the model stays as it is; only what steps take outside, and errors, are followed.
  enum class Coefficients : uint8_t { kFitted, kFixed };
  // Memory and limits of `start` are kept as they are.
  SequenceCostFit(const SequenceCostModel& start, int ranks, Coefficients coefficients);

  // A group in a micro-batch.
  struct GroupTime {
    int degree = 1;
    double squares = 0;  // sum of tokens^2 of its sequences
    double tokens = 0;   // their sum
    double seconds = 0;  // forward and backward, once all its ranks are there
  };
  struct StepTime {
    double micro_batches = 0;  // seconds: the sum over micro-batches of the longest group
    double seconds = 0;        // of the whole step
    double predicted = -1;     // of the whole step, when it began; < 0: counts not among errors
  };
  // Times that are not positive numbers are passed over.
  void AddStep(absl::Span<const GroupTime> groups, const StepTime& step);

  const SequenceCostModel& model() const { return model_; }
  // Seconds of a step outside of micro-batches (optimizer, reductions that nothing hides): the median of recent steps.
  double outside() const;

  // |predicted - measured| / measured of whole steps, of the last kRecentSteps that were predicted.
  static constexpr int kRecentSteps = 40;
  struct Errors {
    int64_t steps = 0;
    double median = 0, p95 = 0;
  };
  Errors errors() const;

  // All that later models depend on, for checkpoints. Other numbers of ranks load the coefficients and fit anew from
  // these. DataLoss: no such text; nothing changes then.
  std::string Save() const;
  absl::Status Load(const std::string& text);

 private:
  void Start(const SequenceCostModel& start);
  std::vector<double> Row(const GroupTime& group) const;
  void Fit(absl::Span<const GroupTime> groups);
  std::vector<double> Solve(std::vector<double> matrix, std::vector<double> right) const;
  void MakeModel();

  int ranks_;
  Coefficients coefficients_;
  SequenceCostModel start_, model_;
  // Unknowns: fixed, quadratic, linear, then exchange of degrees 2, 4, ..
  std::vector<double> units_;           // a coefficient is its unit times its unknown
  std::vector<double> prior_;           // the unknowns at the start: 1, or 0 where the start has no such cost
  std::vector<double> x_;               // the unknowns now
  std::vector<double> matrix_, right_;  // of the normal equations, without the pull to neighbours
  // Of recent steps, the oldest first.
  std::vector<double> residuals_;  // typical relative residual of a group
  std::vector<double> outsides_, errors_;
};

// The largest relative difference in the time of a micro-batch's group that two models make, over degrees of up to
// `ranks` and full or nearly empty groups of long or short sequences.
double ModelChange(const SequenceCostModel& from, const SequenceCostModel& to, int ranks);

}  // namespace shoal
