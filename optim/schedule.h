// Learning-rate schedules over a run measured in steps, samples, tokens or epochs.
#pragma once

#include <cstdint>

#include "optim/optim.pb.h"

namespace shoal {

// How far a run is, in every unit that a Duration may name.
struct RunProgress {
  int64_t steps = 0, samples = 0, tokens = 0;
  double epochs = 0;
  double In(const config::Duration& unit) const;  // in the unit that `unit` names
};
// The number of a Duration, in its own unit.
double Length(const config::Duration& duration);

// Factor on the peak learning rate at `done` of a run of `total`, where `warmup` may have another unit than `total`:
// linear from 0 (exclusive) over the warm-up; then, of what remains, COSINE and LINEAR to final_ratio, WSD flat and
// linear down over its last decay_fraction, CONSTANT flat. `done` counts before the step, so the first step already
// learns.
double ScheduleFactor(const config::ScheduleConfig& schedule, const RunProgress& done, const config::Duration& total);

}  // namespace shoal
