#include "optim/adamw.h"

#include <cmath>

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

void AdamW::Step(ThreadPool& pool, const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) {
  const double t = static_cast<double>(step.step);
  const double bias1 = 1 - std::pow(config_.beta1(), t), bias2 = 1 - std::pow(config_.beta2(), t);
  const auto scalars = [&](double decay) {
    return optim::AdamWScalars{static_cast<float>(step.grad_scale),
                               static_cast<float>(config_.beta1()),
                               static_cast<float>(config_.beta2()),
                               static_cast<float>(1 - step.learning_rate * decay),
                               static_cast<float>(step.learning_rate / bias1),
                               static_cast<float>(1 / bias2),
                               static_cast<float>(config_.epsilon())};
  };
  const auto decayed = scalars(config_.weight_decay()), kept = scalars(0);
  ForPieceRuns(pool, pieces, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    optim::AdamWRun(piece.param->param_class == ParamClass::kVector ? kept : decayed, piece.grad.data<float>() + begin,
                    n, piece.master.data<float>() + begin, piece.state[0].data<float>() + begin,
                    piece.state[1].data<float>() + begin);
  });
}

}  // namespace shoal
