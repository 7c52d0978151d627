// How optimizers walk their pieces: short runs, one task each, over all threads.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "optim/optimizer.h"

namespace shoal {

// Calls fn(piece, begin, count) for runs of all pieces; elementwise updates do not depend on where runs end.
void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count)> fn);

}  // namespace shoal
