// How optimizers walk their pieces: short runs over all threads, moments as floats whatever they are stored as, and
// sums over whole tensors.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "optim/optimizer.h"

namespace shoal {

// Elements of a block whose moments have to be widened: what a kernel reads and writes of it stays in the first-level
// cache.
inline constexpr int64_t kBlockElements = 1024;

// Calls fn(piece, begin, count) for runs of all pieces, one after another on any thread; elementwise updates do not
// depend on where runs end.
void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count)> fn);

// Cuts a run for MomentRun: calls fn(begin, count) for all of it when moments are f32, else block by block.
void ForBlocks(DType moment_type, int64_t begin, int64_t count,
               absl::FunctionRef<void(int64_t begin, int64_t count)> fn);

// The two passes of a layerwise optimizer: `norms` adds the terms of a run to sums[0] and sums[1] of its tensor,
// `apply` is then called for all runs with both sums over the whole tensor, in element order for any number of threads.
//
// A tensor that is here whole goes through the second pass right after the first, so that it is found in the caches;
// those that are cut among owners wait for one sum over env.owners. Collective; its errors.
absl::Status TwoPasses(
    const OptimizerEnv& env, absl::Span<OptimizerPiece> pieces, size_t params,
    absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count, double* sums)> norms,
    absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count, const double* sums)> apply);

// Moment `which` of one of ForBlocks' cuts, as floats: the state itself, or a widened copy of bf16.
class MomentRun {
 public:
  MomentRun(OptimizerPiece& piece, size_t which, int64_t begin, int64_t count);
  float* values() { return values_; }
  // Rounds a widened copy back into the state, stochastically by (seed, update, parameter, which, element of the whole
  // tensor), and leaves what was stored in values(). Nothing to do for f32.
  void Store(const OptimizerStep& step);

 private:
  OptimizerPiece& piece_;
  size_t which_;
  int64_t begin_, count_;
  float* values_;
  float widened_[kBlockElements];
};

}  // namespace shoal
