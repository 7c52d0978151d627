// Sums, maxima and minima of several ranks' values, in rank order.
#pragma once

#include "absl/types/span.h"
#include "comm/communicator.h"

namespace shoal {

// out[i] = op over r of from[r][i], r ascending; sums of f32 and bf16 in fp32 (rounded once), of f64 in fp64. `out` may
// be one of `from`.
void ReduceInRankOrder(DType dtype, ReduceOp op, absl::Span<const void* const> from, int64_t count, void* out);

}  // namespace shoal
