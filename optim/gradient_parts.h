// GradientParts: the squared norm of what each part of a step adds to gradients that are summed up in place.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

class GradientParts {
 public:
  // `grads` are f32 and 1-D, views; as many bytes are kept of what they were after the last part.
  explicit GradientParts(absl::Span<const Tensor> grads, DeviceKind device = DeviceKind::kCpu);
  void BeginStep() { first_ = true; }
  // After each part, which reaches every gradient. The same for any number of threads.
  double SquaredNorm(ThreadPool& pool);
  int64_t bytes() const;

 private:
  std::vector<Tensor> grads_, before_;
  bool first_ = true;
};

}  // namespace shoal
