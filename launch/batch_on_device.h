// From a loader's micro-batch to what modules take.
#pragma once

#include "runtime/data/loader.h"
#include "runtime/module/module.h"

namespace shoal {

// Token ids i32 [T] with their layout (positions, shifted labels, dropout counters). Views nothing of `micro`: safe
// after it is gone.
Batch ToBatch(const MicroBatch& micro);

}  // namespace shoal
