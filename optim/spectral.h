// Spectral diagnostic: top singular values of matrices, how they grow with the width, and the decay exponent that would
// keep them constant.
//
// In the steady state of AdamW sigma ~ (eta / lambda)^(1/2) d^a. With eta ~ 1/d and lambda ~ d^p it is constant when
// p = 2a - 1: 0.5 for the a = 0.75 of arXiv 2510.15262, 1 where a low-rank signal dominates. a depends on data and
// width, so it is measured. Protocol: constant learning rate, sigma averaged over checkpoints half a decay time apart,
// one fit per kind of matrix.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// Largest singular value of `matrix` (f32; more than two dimensions count as [out, everything else]), by power
// iteration from a start that depends on `name` alone, until it changes by less than 1e-7 of itself or `iterations` are
// done. A lower bound, in double precision.
struct SpectralOptions {
  int iterations = 200;
  std::string name;
};
double TopSingularValue(ThreadPool& pool, const Tensor& matrix, const SpectralOptions& options);
// By how much a matrix enlarges inputs of independent elements, in root mean squares: ||W||_F / sqrt(out).
double RmsGain(ThreadPool& pool, const Tensor& matrix);

// One matrix of one run.
struct SpectralPoint {
  int64_t width = 0;
  double sigma = 0;          // top singular value
  double learning_rate = 0;  // eta of the matrix: width rule included
  double weight_decay = 0;   // lambda of the matrix
  int64_t steps = 0;         // T, at this rate
};
struct SpectralFit {
  double a = 0;               // slope of ln sigma - ln(eta / lambda) / 2 on ln d
  double spread = 0;          // its standard error; 0 when the points determine the line exactly
  double decay_exponent = 0;  // p = 2a - 1; its standard error is 2 spread
};
// Least squares over all points (seeds, layers of one kind, widths). InvalidArgument for fewer than two widths, values
// that have no logarithm, and a run too short to be in its steady state: T eta lambda < 3.
absl::StatusOr<SpectralFit> FitWidthExponent(absl::Span<const SpectralPoint> points);

}  // namespace shoal
