#include "optim/gradient_parts.h"

#include "optim/kernels.h"
#include "runtime/ops/ops.h"

namespace shoal {

GradientParts::GradientParts(absl::Span<const Tensor> grads, DeviceKind device) : grads_(grads.begin(), grads.end()) {
  for (const Tensor& grad : grads_) before_.push_back(Tensor::Zeros(grad.shape(), DType::kF32, device));
}

double GradientParts::SquaredNorm(ThreadPool& pool) {
  OpContext ctx{.pool = &pool};
  if (!first_) {
    for (size_t i = 0; i < grads_.size(); ++i) {
      pool.ParallelFor(grads_[i].size(), optim::kGrain, [&](int64_t begin, int64_t end) {
        optim::CombineRun(1, grads_[i].data<float>() + begin, -1, end - begin, before_[i].data<float>() + begin);
      });
    }
  }
  const double squares = ops::SumOfSquares(ctx, first_ ? grads_ : before_);
  for (size_t i = 0; i < grads_.size(); ++i) ops::Copy(ctx, grads_[i], before_[i]);
  first_ = false;
  return squares;
}

int64_t GradientParts::bytes() const {
  int64_t total = 0;
  for (const Tensor& before : before_) total += before.bytes();
  return total;
}

}  // namespace shoal
