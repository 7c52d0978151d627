// Shape suffixes: M rows, N columns, K the smaller of both.
#include "optim/newton_schulz.h"

#include <glog/logging.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "optim/kernels.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

struct Coefficients {
  float a, b, c;
};
constexpr int kSteps = 5;
// github.com/KellerJordan/Muon: the same quintic five times, chosen for its slope at 0.
constexpr std::array<Coefficients, kSteps> kKeller = {{{3.4445F, -4.7750F, 2.0315F},
                                                       {3.4445F, -4.7750F, 2.0315F},
                                                       {3.4445F, -4.7750F, 2.0315F},
                                                       {3.4445F, -4.7750F, 2.0315F},
                                                       {3.4445F, -4.7750F, 2.0315F}}};
// arXiv 2505.16932: optimal for singular values from 1e-3, with a margin of 1 % for rounding.
constexpr std::array<Coefficients, kSteps> kPolarExpress = {
    {{8.156554524902461F, -22.48329292557795F, 15.878769915207462F},
     {4.042929935166739F, -2.808917465908714F, 0.5000178451051316F},
     {3.8916678022926607F, -2.772484153217685F, 0.5060648178503393F},
     {3.285753657755655F, -2.3681294933425376F, 0.46449024233003106F},
     {2.3465413258596377F, -1.7097828382687081F, 0.42323551169305323F}}};

// Which of x's sides the Gram matrix is of.
enum class Side : uint8_t { kRows, kColumns };

// out_KK = x x^T or x^T x. Only blocks on and below the diagonal are products; the others are their mirror images.
void Gram(OpContext& ctx, const Tensor& x, Side side, const Tensor& out) {
  constexpr int64_t kBlock = 128;
  const int64_t k = out.dim(0);
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(k, begin + kBlock);
    const Tensor block = out.Rows(begin, end).Slice(1, 0, end);
    if (side == Side::kRows) {
      ops::Matmul(ctx, x.Rows(begin, end), x.Rows(0, end), block, {.transpose_b = ops::Transpose::kYes});
    } else {
      ops::Matmul(ctx, x.Slice(1, begin, end), x.Slice(1, 0, end), block, {.transpose_a = ops::Transpose::kYes});
    }
  }
  float* values = out.data<float>();
  ctx.pool->ParallelFor(k, kBlock, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      for (int64_t j = (i / kBlock + 1) * kBlock; j < k; ++j) values[i * k + j] = values[j * k + i];
    }
  });
}

}  // namespace

Tensor Orthogonalizer::Scratch(Tensor& held, int64_t rows, int64_t columns) {
  if (!held.defined() || held.size() < rows * columns) held = Tensor::Zeros({rows * columns}, DType::kF32);
  return held.Rows(0, rows * columns).View({rows, columns});
}

void Orthogonalizer::Run(ThreadPool& pool, const Tensor& x) {
  CHECK(x.rank() == 2 && x.dtype() == DType::kF32 && x.contiguous()) << "orthogonalised: " << ShapeString(x.shape());
  if (x.size() == 0) return;
  OpContext ctx{.pool = &pool};
  const int64_t m = x.dim(0), n = x.dim(1), k = std::min(m, n);
  const Side side = m <= n ? Side::kRows : Side::kColumns;
  const bool polar = coefficients_ == config::MuonConfig::POLAR_EXPRESS;
  const auto over = [&pool](int64_t size, auto fn) { pool.ParallelFor(size, optim::kGrain, fn); };

  constexpr double kLeast = 1e-7;  // so that zeros are not divided by zero
  const double norm = std::sqrt(ops::SumOfSquares(ctx, x)) * (polar ? 1.01 : 1.0) + kLeast;
  ops::Scale(ctx, x, static_cast<float>(1 / norm));

  Tensor from = x, to = Scratch(next_, m, n);
  const Tensor gram = Scratch(gram_, k, k), square = Scratch(square_, k, k);
  for (const Coefficients& step : polar ? kPolarExpress : kKeller) {
    Gram(ctx, from, side, gram);
    Gram(ctx, gram, Side::kRows, square);
    over(k * k, [&](int64_t begin, int64_t end) {
      optim::CombineRun(step.b, gram.data<float>() + begin, step.c, end - begin, square.data<float>() + begin);
    });
    over(m * n, [&](int64_t begin, int64_t end) {
      optim::ScaleRun(step.a, from.data<float>() + begin, end - begin, to.data<float>() + begin);
    });
    if (side == Side::kRows) {
      ops::Matmul(ctx, square, from, to, {.accumulate = ops::Accumulate::kAdd});
    } else {
      ops::Matmul(ctx, from, square, to, {.accumulate = ops::Accumulate::kAdd});
    }
    std::swap(from, to);
  }
  if (from.raw() != x.raw()) ops::Copy(ctx, from, x);
}

double Orthogonalizer::Flops(int64_t rows, int64_t columns) {
  const auto k = static_cast<double>(std::min(rows, columns)), l = static_cast<double>(std::max(rows, columns));
  return kSteps * (4 * k * k * l + 2 * k * k * k);
}

}  // namespace shoal
