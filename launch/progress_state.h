// ProgressState: how far a run is. Saved in checkpoints; equal on all ranks.
#pragma once

#include <cstdint>

#include "parallel/state.h"

namespace shoal {

struct ProgressState : public Stateful {
  int64_t step = 0;      // optimizer steps done, skipped ones included
  int64_t updates = 0;   // of these, how many changed the weights
  int64_t position = 0;  // global sampler position: samples seen
  int64_t tokens = 0;    // predicted tokens
  double best_eval = 0;  // lowest held-out loss so far; meaningful when evals > 0
  int64_t evals = 0;

  void VisitState(StateVisitor& visitor) override {
    visitor.Scalar("progress.step", step);
    visitor.Scalar("progress.updates", updates);
    visitor.Scalar("progress.position", position);
    visitor.Scalar("progress.tokens", tokens);
    visitor.Scalar("progress.best_eval", best_eval);
    visitor.Scalar("progress.evals", evals);
  }
};

}  // namespace shoal
