// Newton-Schulz iterations: the orthogonal factor U V^T of a matrix U S V^T, roughly, by products alone.
#pragma once

#include "optim/optim.pb.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// Keeps its scratch memory (about the largest matrix and two squares of its smaller side) between calls. One caller at
// a time. Products are the pool's: the same bits for any number of threads, not for processors with other instructions.
class Orthogonalizer {
 public:
  explicit Orthogonalizer(config::MuonConfig::Coefficients coefficients) : coefficients_(coefficients) {}

  // x_MN (f32, contiguous) in place: scaled to norm at most 1, then five times X = a X + (b A + c A^2) X with A = X X^T
  // (for M > N on the other side). Singular values below about 1e-3 of the norm stay small. Zeros stay zeros.
  void Run(ThreadPool& pool, const Tensor& x);

  // FLOPs of Run, with A and A^2 taken as full products.
  static double Flops(int64_t rows, int64_t columns);

 private:
  Tensor Scratch(Tensor& held, int64_t rows, int64_t columns);
  config::MuonConfig::Coefficients coefficients_;
  Tensor next_, gram_, square_;
};

}  // namespace shoal
