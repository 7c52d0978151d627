#include "optim/spectral.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return std::sqrt(sum);
}

void Normalize(std::vector<double>& x, double norm) {
  for (double& v : x) v /= norm;
}

// y_M = A_MN x_N and z_N = A_MN^T y_M; each task owns some of the output.
void Multiply(ThreadPool& pool, const float* a, int64_t n, const std::vector<double>& x, std::vector<double>& y) {
  pool.ParallelFor(static_cast<int64_t>(y.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(a[i * n + j]) * x[j];
      y[i] = sum;
    }
  });
}
void MultiplyTransposed(ThreadPool& pool, const float* a, const std::vector<double>& y, std::vector<double>& z) {
  const auto n = static_cast<int64_t>(z.size());
  pool.ParallelFor(n, 64, [&](int64_t begin, int64_t end) {
    std::fill(z.begin() + begin, z.begin() + end, 0.0);
    for (size_t i = 0; i < y.size(); ++i) {
      const float* row = a + static_cast<int64_t>(i) * n;
      for (int64_t j = begin; j < end; ++j) z[j] += static_cast<double>(row[j]) * y[i];
    }
  });
}

}  // namespace

double TopSingularValue(ThreadPool& pool, const Tensor& matrix, const SpectralOptions& options) {
  CHECK(matrix.dtype() == DType::kF32 && matrix.rank() >= 2) << "singular values of " << ShapeString(matrix.shape());
  if (matrix.size() == 0) return 0;
  constexpr double kConverged = 1e-7;
  const int64_t rows = matrix.dim(0), columns = matrix.size() / rows;
  const float* a = matrix.data<float>();
  std::vector<double> x(columns), y(rows);
  const Rng rng({0, RngPurpose::kInit, NameHash(absl::StrCat(options.name, "/spectral"))});
  for (int64_t j = 0; j < columns; ++j) x[j] = static_cast<double>(rng.Normal(0, static_cast<uint64_t>(j)));
  Normalize(x, Norm(x));
  double sigma = 0;
  for (int i = 0; i < options.iterations; ++i) {
    Multiply(pool, a, columns, x, y);
    const double before = sigma;
    sigma = Norm(y);
    if (sigma == 0) return 0;
    if (std::abs(sigma - before) < kConverged * sigma) break;
    MultiplyTransposed(pool, a, y, x);
    Normalize(x, Norm(x));
  }
  return sigma;
}

double RmsGain(ThreadPool& pool, const Tensor& matrix) {
  if (matrix.size() == 0) return 0;
  OpContext ctx{.pool = &pool};
  return std::sqrt(ops::SumOfSquares(ctx, matrix) / static_cast<double>(matrix.dim(0)));
}

absl::StatusOr<SpectralFit> FitWidthExponent(absl::Span<const SpectralPoint> points) {
  constexpr double kSteady = 3;
  std::vector<double> x, y;
  for (const SpectralPoint& p : points) {
    if (p.width < 1 || !(p.sigma > 0) || !(p.learning_rate > 0) || !(p.weight_decay > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("width ", p.width, ", sigma ", p.sigma, ", rate ", p.learning_rate,
                                                     ", decay ", p.weight_decay,
                                                     ": the spectral fit needs all above 0"));
    }
    const double times = static_cast<double>(p.steps) * p.learning_rate * p.weight_decay;
    if (times < kSteady) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the run of width ", p.width, " is not in its steady state: steps x rate x decay is ", times, ", it needs ",
          kSteady, ". Train ", std::ceil(kSteady / (p.learning_rate * p.weight_decay)), " steps or more"));
    }
    x.push_back(std::log(static_cast<double>(p.width)));
    y.push_back(std::log(p.sigma) - 0.5 * std::log(p.learning_rate / p.weight_decay));
  }
  const auto n = static_cast<double>(x.size());
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += x[i] / n;
    mean_y += y[i] / n;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  if (x.empty() || xx < 1e-12) return absl::InvalidArgumentError("the spectral fit needs runs of two widths or more");
  SpectralFit fit;
  fit.a = xy / xx;
  double rest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double off = y[i] - mean_y - fit.a * (x[i] - mean_x);
    rest += off * off;
  }
  fit.spread = x.size() > 2 ? std::sqrt(rest / (n - 2) / xx) : 0;
  fit.decay_exponent = 2 * fit.a - 1;
  return fit;
}

}  // namespace shoal
