#include "optim/sgd.h"

#include "optim/kernels.h"
#include "optim/pieces.h"

namespace shoal {

void Sgd::Step(ThreadPool& pool, const OptimizerStep& step, absl::Span<OptimizerPiece> pieces) {
  ForPieceRuns(pool, pieces, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    const double decay = piece.param->param_class == ParamClass::kVector ? 0 : config_.weight_decay();
    optim::SgdRun({static_cast<float>(step.grad_scale), static_cast<float>(config_.momentum()),
                   static_cast<float>(decay), static_cast<float>(step.learning_rate), config_.nesterov()},
                  piece.grad.data<float>() + begin, n, piece.master.data<float>() + begin,
                  piece.state[0].data<float>() + begin);
  });
}

}  // namespace shoal
