// PowerSGD against float64 references, its error feedback over many steps, and its error estimates.
#include "comm/codec/power_sgd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "tests/dispatch_targets.h"

namespace shoal {
namespace {

using Matrix = std::vector<float>;  // row-major

Matrix Normals(int64_t rows, int64_t columns, uint64_t stream) {
  const Rng rng({11, RngPurpose::kTest, 3});
  Matrix m(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < m.size(); ++i) m[i] = rng.Normal(stream, i);
  return m;
}
// Entry [i, k] of A B^T in double, A [rows, rank] and B [columns, rank].
double Product(const Matrix& a, const Matrix& b, int rank, int64_t i, int64_t k) {
  double sum = 0;
  for (int64_t j = 0; j < rank; ++j) {
    sum += static_cast<double>(a[i * rank + j]) * static_cast<double>(b[k * rank + j]);
  }
  return sum;
}
Matrix OfRank(int64_t rows, int64_t columns, int rank, uint64_t stream) {
  const Matrix a = Normals(rows, rank, stream), b = Normals(columns, rank, stream + 1);
  Matrix m(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < columns; ++k) m[i * columns + k] = static_cast<float>(Product(a, b, rank, i, k));
  }
  return m;
}
double SquaredNorm(const Matrix& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}
double Norm(const Matrix& x) { return std::sqrt(SquaredNorm(x)); }
double Distance(const Matrix& x, const Matrix& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
  return std::sqrt(sum);
}
CodecInput Input(const Matrix& m, float* left = nullptr) {
  return {.gradient = m.data(), .size = static_cast<int64_t>(m.size()), .left = left};
}

// What one rank alone makes of M in a round; q goes in and comes out.
struct Round {
  Matrix p, left, out;
  Encoded encoded;
};
Round RunRound(const PowerSgdShape& shape, const CodecInput& input, Matrix& q) {
  Round round;
  round.p.resize(static_cast<size_t>(shape.rows * shape.rank));
  round.left.resize(static_cast<size_t>(shape.rows * shape.columns));
  round.out.resize(round.left.size());
  PowerSgdProject(shape, input, q.data(), round.p.data());
  Orthonormalise(shape.rows, shape.rank, round.p.data());
  PowerSgdBackProject(shape, input, round.p.data(), q.data());
  CodecInput with_left = input;
  with_left.left = round.left.data();
  round.encoded = PowerSgdResidual(shape, with_left, round.p.data(), q.data());
  PowerSgdReconstruct(shape, round.p.data(), q.data(), round.out.data());
  return round;
}
Matrix Started(const PowerSgdShape& shape, uint64_t seed = 5) {
  Matrix q(static_cast<size_t>(shape.columns * shape.rank));
  PowerSgdStart(shape, seed, 9, 2, 0, q.data());
  return q;
}

const std::vector<PowerSgdShape>& Shapes() {
  static const std::vector<PowerSgdShape> shapes = {{1, 1, 1},     {1, 37, 1},   {37, 1, 1},   {5, 3, 3},
                                                    {3, 5, 3},     {16, 16, 4},  {33, 50, 7},  {64, 48, 48},
                                                    {130, 67, 16}, {4, 8200, 2}, {257, 90, 5}, {70, 130, 64}};
  return shapes;
}
std::string Name(const PowerSgdShape& s) { return absl::StrCat(s.rows, " x ", s.columns, ", rank ", s.rank); }

TEST(PowerSgd, ReconstructsWhatHasNoMoreThanItsRank) {
  for (const PowerSgdShape& shape : Shapes()) {
    for (const int rank : {shape.rank, (shape.rank + 1) / 2}) {
      SCOPED_TRACE(absl::StrCat(Name(shape), ", of rank ", rank));
      const Matrix m = OfRank(shape.rows, shape.columns, rank, 20);
      Matrix q = Started(shape);
      for (int round = 0; round < 2; ++round) {
        const Round made = RunRound(shape, Input(m), q);
        EXPECT_LE(Distance(made.out, m), 1e-5 * Norm(m)) << "round " << round;
      }
    }
  }
}

TEST(PowerSgd, FactorsAndResidualAreThoseOfFloat64) {
  for (const PowerSgdShape& shape : Shapes()) {
    SCOPED_TRACE(Name(shape));
    const auto [rows, columns, rank] = shape;
    const Matrix gradient = Normals(rows, columns, 1), residual = Normals(rows, columns, 2);
    const CodecInput input = {gradient.data(), residual.data(), 0.5F, rows * columns, nullptr};
    Matrix m(gradient.size());
    for (size_t i = 0; i < m.size(); ++i) m[i] = gradient[i] + 0.5F * residual[i];
    const Matrix start = Started(shape);

    Matrix p(static_cast<size_t>(rows * rank));
    PowerSgdProject(shape, input, start.data(), p.data());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rank; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < columns; ++k) {
          sum += static_cast<double>(m[i * columns + k]) * static_cast<double>(start[k * rank + j]);
        }
        ASSERT_NEAR(p[i * rank + j], sum, 1e-5 * std::sqrt(static_cast<double>(columns)) + 1e-6) << i << ", " << j;
      }
    }
    Matrix q = start;
    const Round round = RunRound(shape, input, q);
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t j = 0; j < rank; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < rows; ++i) {
          sum += static_cast<double>(m[i * columns + k]) * static_cast<double>(round.p[i * rank + j]);
        }
        ASSERT_NEAR(q[k * rank + j], sum, 1e-5) << k << ", " << j;
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < columns; ++k) {
        const double left = static_cast<double>(m[i * columns + k]) - Product(round.p, q, rank, i, k);
        ASSERT_NEAR(round.left[i * columns + k], left, 1e-5) << i << ", " << k;
        ASSERT_EQ(round.left[i * columns + k], m[i * columns + k] - round.out[i * columns + k]) << i << ", " << k;
      }
    }
    EXPECT_NEAR(round.encoded.squares, SquaredNorm(m), 1e-9 * SquaredNorm(m));
    EXPECT_NEAR(round.encoded.error_squares, SquaredNorm(round.left), 1e-9 * SquaredNorm(m));
    EXPECT_TRUE(round.encoded.finite);
    // In place, and without.
    Matrix in_place = gradient;
    PowerSgdResidual(shape, {in_place.data(), residual.data(), 0.5F, rows * columns, in_place.data()}, round.p.data(),
                     q.data());
    EXPECT_EQ(in_place, round.left);
    EXPECT_EQ(PowerSgdResidual(shape, input, round.p.data(), q.data()).error_squares, round.encoded.error_squares);
  }
}

TEST(PowerSgd, OrthonormalColumnsOrZero) {
  for (const PowerSgdShape& shape : Shapes()) {
    for (const bool dependent : {false, true}) {
      SCOPED_TRACE(absl::StrCat(Name(shape), dependent ? ", dependent" : ""));
      const int64_t rows = shape.rows, rank = std::min<int64_t>(shape.rank, rows);
      Matrix p = Normals(rows, rank, 3);
      if (dependent) {
        for (int64_t i = 0; i < rows; ++i) {
          float* row = &p[i * rank];
          for (int64_t j = 0; j < rank; ++j) {
            if (j % 4 == 1) row[j] = 0;
            if (j % 4 == 2) row[j] = -3 * row[0];
            if (j % 4 == 3) row[j] = row[0] * 1e18F + row[j - 3] * 0.1F;
          }
        }
      }
      Orthonormalise(rows, static_cast<int>(rank), p.data());
      for (int64_t a = 0; a < rank; ++a) {
        for (int64_t b = 0; b <= a; ++b) {
          double dot = 0;
          for (int64_t i = 0; i < rows; ++i) {
            dot += static_cast<double>(p[i * rank + a]) * static_cast<double>(p[i * rank + b]);
          }
          if (a == b && dependent && a % 4 != 0) {
            ASSERT_TRUE(std::abs(dot - 1) < 1e-5 || dot == 0) << a << ": " << dot;
            if (a % 4 == 1) {
              ASSERT_EQ(dot, 0) << a;
            }
          } else {
            ASSERT_NEAR(dot, a == b ? 1 : 0, 1e-5) << a << ", " << b;
          }
        }
      }
    }
  }
}

// The averaged residual would grow with the square root of steps.
TEST(PowerSgd, ErrorFeedbackLosesNothingAndStaysBounded) {
  constexpr int kWorld = 4, kSteps = 1000;
  const PowerSgdShape shape = {24, 20, 2};
  const auto size = static_cast<size_t>(shape.rows * shape.columns);
  std::vector<Matrix> residuals(kWorld, Matrix(size));
  std::vector<double> gradients(size), applied(size);
  std::vector<double> norms;
  Matrix q = Started(shape);
  for (uint64_t step = 0; step < kSteps; ++step) {
    std::vector<Matrix> all;
    std::vector<CodecInput> inputs;
    Matrix p(static_cast<size_t>(shape.rows * shape.rank)), part = p;
    for (uint64_t rank = 0; rank < kWorld; ++rank) {
      all.push_back(Normals(shape.rows, shape.columns, 1000 + step * kWorld + rank));
      for (size_t i = 0; i < size; ++i) gradients[i] += static_cast<double>(all[rank][i]) / kWorld;
    }
    for (int rank = 0; rank < kWorld; ++rank) {
      inputs.push_back({all[rank].data(), residuals[rank].data(), 1, static_cast<int64_t>(size), nullptr});
      PowerSgdProject(shape, inputs[rank], q.data(), part.data());
      for (size_t i = 0; i < p.size(); ++i) p[i] += part[i];
    }
    Orthonormalise(shape.rows, shape.rank, p.data());
    Matrix sum(q.size());
    double norm = 0;
    for (int rank = 0; rank < kWorld; ++rank) {
      PowerSgdBackProject(shape, inputs[rank], p.data(), q.data());
      inputs[rank].left = residuals[rank].data();
      EXPECT_TRUE(PowerSgdResidual(shape, inputs[rank], p.data(), q.data()).finite);
      for (size_t i = 0; i < q.size(); ++i) sum[i] += q[i];
      norm += Norm(residuals[rank]) / kWorld;
    }
    norms.push_back(norm);
    q = sum;
    Matrix out(size);
    PowerSgdReconstruct(shape, p.data(), q.data(), out.data());
    for (size_t i = 0; i < size; ++i) applied[i] += static_cast<double>(out[i]) / kWorld;
  }
  double off = 0, whole = 0;
  for (size_t i = 0; i < size; ++i) {
    double there = applied[i];
    for (const Matrix& e : residuals) there += static_cast<double>(e[i]) / kWorld;
    off += std::pow(there - gradients[i], 2);
    whole += std::pow(gradients[i], 2);
  }
  EXPECT_LE(std::sqrt(off), 1e-4 * std::sqrt(whole));
  double early = 0, late = 0;
  for (int i = 0; i < 100; ++i) {
    early += norms[100 + i] / 100;
    late += norms[900 + i] / 100;
  }
  EXPECT_LE(late, 1.3 * early);
}

TEST(PowerSgd, StartKeepsWhatIsThereAndDrawsTheRest) {
  const PowerSgdShape narrow = {40, 30, 3}, wide = {40, 30, 5};
  const Matrix q = Started(narrow);
  EXPECT_EQ(q, Started(narrow));
  EXPECT_NE(q, Started(narrow, 6));
  Matrix extended(static_cast<size_t>(wide.columns * wide.rank));
  for (int64_t k = 0; k < 30; ++k) {
    for (int64_t j = 0; j < 3; ++j) extended[k * 5 + j] = static_cast<float>(k + j);
    extended[k * 5 + 1] = 0;
  }
  PowerSgdStart(wide, 5, 9, 2, 3, extended.data());
  const Matrix fresh = Started(wide);
  for (int64_t k = 0; k < 30; ++k) {
    EXPECT_EQ(extended[k * 5], static_cast<float>(k));
    EXPECT_EQ(extended[k * 5 + 2], static_cast<float>(k + 2));
    for (const int64_t drawn : {1, 3, 4}) EXPECT_EQ(extended[k * 5 + drawn], fresh[k * 5 + drawn]);
    for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(fresh[k * 5 + j], q[k * 3 + j]) << "a column depends on the rank";
  }
}

TEST(PowerSgd, ARoundOfZerosIsNotTheLast) {
  const PowerSgdShape shape = {40, 30, 3};
  Matrix q = Started(shape);
  const Matrix zeros(static_cast<size_t>(shape.rows * shape.columns)), m = OfRank(shape.rows, shape.columns, 3, 8);
  EXPECT_EQ(RunRound(shape, Input(zeros), q).out, zeros);
  PowerSgdStart(shape, 5, 9, 2, shape.rank, q.data());
  EXPECT_LE(Distance(RunRound(shape, Input(m), q).out, m), 1e-5 * Norm(m));
}

TEST(PowerSgd, TargetsGiveTheSameBits) {
  for (const PowerSgdShape& shape : Shapes()) {
    SCOPED_TRACE(Name(shape));
    const Matrix gradient = Normals(shape.rows, shape.columns, 1), residual = Normals(shape.rows, shape.columns, 2);
    const CodecInput input = {gradient.data(), residual.data(), 0.3F, shape.rows * shape.columns, nullptr};
    const std::vector<int> ranks = {1, shape.rank};
    std::vector<Matrix> factors;
    std::vector<Round> rounds;
    std::vector<std::vector<double>> errors;
    OnEachDispatchTarget([&] {
      Matrix q = Started(shape);
      rounds.push_back(RunRound(shape, input, q));
      factors.push_back(q);
      errors.emplace_back(ranks.size());
      errors.back().push_back(
          PowerSgdErrors(shape.rows, shape.columns, input, ranks, absl::MakeSpan(errors.back().data(), ranks.size())));
      EXPECT_EQ(factors[0], q);
      EXPECT_EQ(rounds[0].p, rounds.back().p);
      EXPECT_EQ(rounds[0].left, rounds.back().left);
      EXPECT_EQ(rounds[0].out, rounds.back().out);
      EXPECT_EQ(rounds[0].encoded.squares, rounds.back().encoded.squares);
      EXPECT_EQ(rounds[0].encoded.error_squares, rounds.back().encoded.error_squares);
      EXPECT_EQ(errors[0], errors.back());
    });
  }
}

TEST(PowerSgd, NotFiniteShowsOnEveryRank) {
  const PowerSgdShape shape = {21, 18, 3};
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Matrix m = Normals(shape.rows, shape.columns, 4), q = Started(shape);
    m[5 * 18 + 17] = bad;
    const Round round = RunRound(shape, Input(m), q);
    EXPECT_FALSE(round.encoded.finite);
    EXPECT_TRUE(std::ranges::any_of(round.out, [](float x) { return !std::isfinite(x); }));
    const std::vector<int> ranks = {1, 2};
    std::vector<double> errors(2);
    EXPECT_TRUE(std::isnan(PowerSgdErrors(shape.rows, shape.columns, Input(m), ranks, absl::MakeSpan(errors))));
    EXPECT_TRUE(std::isnan(errors[0]) && std::isnan(errors[1]));
    // The sums of the factors are not finite on ranks whose own gradients are.
    const Matrix fine = Normals(shape.rows, shape.columns, 5);
    EXPECT_FALSE(PowerSgdResidual(shape, Input(fine), round.p.data(), q.data()).finite);
  }
}

// Squared singular values in descending order: one-sided Jacobi on the columns.
std::vector<double> SingularSquares(int64_t rows, int64_t columns, const Matrix& m) {
  std::vector<double> a(m.begin(), m.end());
  const auto dot = [&](int64_t k, int64_t l) {
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += a[i * columns + k] * a[i * columns + l];
    return sum;
  };
  const double whole = SquaredNorm(m);  // columns beyond the rank of m are only rounding
  for (bool turned = true; turned;) {
    turned = false;
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t l = k + 1; l < columns; ++l) {
        const double kk = dot(k, k), ll = dot(l, l), kl = dot(k, l);
        if (std::abs(kl) <= 1e-9 * std::sqrt(kk * ll) + 1e-13 * whole) continue;
        turned = true;
        const double angle = 0.5 * std::atan2(2 * kl, kk - ll);
        for (int64_t i = 0; i < rows; ++i) {
          double &x = a[i * columns + k], &y = a[i * columns + l];
          const double was = x;
          x = std::cos(angle) * was + std::sin(angle) * y;
          y = std::cos(angle) * y - std::sin(angle) * was;
        }
      }
    }
  }
  std::vector<double> squares;
  for (int64_t k = 0; k < columns; ++k) squares.push_back(dot(k, k));
  std::sort(squares.rbegin(), squares.rend());
  return squares;
}

TEST(PowerSgd, ErrorsAreTheTailsOfSingularValues) {
  struct Case {
    int64_t rows, columns;
    int rank;     // of the signal
    float noise;  // beside it
  };
  const std::vector<int> ranks = {1, 2, 4, 8, 16};
  for (const Case& c : std::vector<Case>{
           {90, 40, 3, 0.3F}, {90, 40, 6, 1e-3F}, {40, 60, 12, 0.1F}, {70, 50, 4, 3}, {1, 30, 1, 0}, {30, 1, 1, 0}}) {
    SCOPED_TRACE(absl::StrCat(c.rows, " x ", c.columns, ", rank ", c.rank, ", noise ", c.noise));
    Matrix m = OfRank(c.rows, c.columns, c.rank, 30);
    const Matrix noise = Normals(c.rows, c.columns, 40);
    for (size_t i = 0; i < m.size(); ++i) m[i] += c.noise * noise[i];
    std::vector<double> errors(ranks.size());
    const double whole = PowerSgdErrors(c.rows, c.columns, Input(m), ranks, absl::MakeSpan(errors));
    EXPECT_NEAR(whole, SquaredNorm(m), 1e-9 * SquaredNorm(m));
    const std::vector<double> squares = SingularSquares(c.rows, c.columns, m);
    for (size_t i = 0; i < ranks.size(); ++i) {
      double exact = 0;
      for (size_t s = static_cast<size_t>(ranks[i]); s < squares.size(); ++s) exact += squares[s];
      EXPECT_NEAR(errors[i], exact, 0.06 * exact + 1e-6 * whole) << "rank " << ranks[i];
    }
  }
}

}  // namespace
}  // namespace shoal
