// How optimizers walk their pieces: short runs over all threads, moments as floats whatever they are stored as, and
// sums over whole tensors.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "optim/optimizer.h"

namespace shoal {

// Elements of a run at most: what a kernel reads and writes of it stays in the first-level cache.
inline constexpr int64_t kRunElements = 1024;

// Calls fn(piece, begin, count) for runs of all pieces; elementwise updates do not depend on where runs end.
void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count)> fn);

// The same with `width` sums: fn adds the run's terms to sums[0, width). Returns them by parameter, [id * width +
// which], added up in element order, for any number of threads; 0 for parameters that this rank has nothing of.
std::vector<double> SumByParam(
    ThreadPool& pool, absl::Span<OptimizerPiece> pieces, size_t params, size_t width,
    absl::FunctionRef<void(OptimizerPiece& piece, int64_t begin, int64_t count, double* sums)> fn);

// Moment `which` of a run of at most kRunElements, as floats: the state itself, or a widened copy of bf16.
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
  float widened_[kRunElements];
};

}  // namespace shoal
