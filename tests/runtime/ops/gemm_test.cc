#include "runtime/ops/cpu/gemm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/openblas_adapter.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

using ops::Accumulate;
using ops::Transpose;

std::vector<double> Random(int64_t n, const char* name) {
  const Rng rng({3, RngPurpose::kTest, NameHash(name), 0});
  std::vector<double> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(rng.Uniform(0, i) - 0.5f);
  return out;
}

template <class T>
std::vector<T> As(const std::vector<double>& values) {
  return std::vector<T>(values.begin(), values.end());
}

// alpha op(A) op(B), on top of c where that is asked for.
std::vector<double> Reference(const cpu::GemmShape& s, double alpha, const std::vector<double>& a,
                              const std::vector<double>& b, const std::vector<double>& c, Accumulate accumulate) {
  const bool ta = s.transpose_a == Transpose::kYes, tb = s.transpose_b == Transpose::kYes;
  std::vector<double> want = c;
  for (int64_t m = 0; m < s.m; ++m) {
    for (int64_t n = 0; n < s.n; ++n) {
      double sum = accumulate == Accumulate::kAdd ? c[m * s.ldc + n] : 0;
      for (int64_t k = 0; k < s.k; ++k)
        sum += alpha * a[ta ? k * s.lda + m : m * s.lda + k] * b[tb ? n * s.ldb + k : k * s.ldb + n];
      want[m * s.ldc + n] = sum;
    }
  }
  return want;
}
struct Operands {
  std::vector<double> a, b, c;
  explicit Operands(const cpu::GemmShape& s)
      : a(Random((s.transpose_a == Transpose::kYes ? s.k : s.m) * s.lda, "a")),
        b(Random((s.transpose_b == Transpose::kYes ? s.n : s.k) * s.ldb, "b")),
        c(Random(s.m * s.ldc, "c")) {}
};
// Every transpose, with rows longer than they need to be.
std::vector<cpu::GemmShape> ShapesOf(int64_t m, int64_t n, int64_t k) {
  std::vector<cpu::GemmShape> shapes;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes})
      shapes.push_back(
          {m, n, k, ta, tb, (ta == Transpose::kYes ? m : k) + 3, (tb == Transpose::kYes ? k : n) + 5, n + 1});
  }
  return shapes;
}

template <class T>
void ExpectMatchesReference(const cpu::GemmShape& s, Accumulate accumulate, double bound) {
  const auto [a, b, c] = Operands(s);
  const std::vector<double> want = Reference(s, 1, a, b, c, accumulate);
  std::vector<T> first;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::vector<T> got = As<T>(c);
    cpu::ParallelGemm<T>(pool, s, As<T>(a).data(), As<T>(b).data(), accumulate, got.data());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], bound * std::sqrt(s.k + 1.0)) << s.m << "x" << s.n << "x" << s.k << " at " << i;
    }
    if (threads == 1) first = got;
    ASSERT_EQ(got, first) << "threads change the bits of " << s.m << "x" << s.n << "x" << s.k;
  }
}

TEST(Gemm, MatchesFloat64ForAllTransposesStridesAndThreads) {
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {0, 5, 3}, {1, 1, 1}, {7, 13, 5}, {64, 64, 64}, {257, 96, 129}, {33, 1031, 70}, {300, 300, 300}}) {
    for (const cpu::GemmShape& s : ShapesOf(m, n, k)) {
      for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
        ExpectMatchesReference<float>(s, accumulate, 1e-6);
        ExpectMatchesReference<double>(s, accumulate, 1e-14);
      }
    }
  }
}

// Rows of B that are whole pages apart, and depths that are summed in slices.
TEST(Gemm, MatchesFloat64WhereRowsCollide) {
  for (const auto& [m, n, k] :
       std::vector<std::array<int64_t, 3>>{{7, 100, 70}, {8, 16, 703}, {40, 100, 705}, {96, 1024, 70}, {9, 33, 1500}}) {
    for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (const int64_t ldb : {1024, 2048}) {
        const cpu::GemmShape s{m, n, k, ta, Transpose::kNo, ta == Transpose::kYes ? m : k, ldb, n};
        for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd})
          ExpectMatchesReference<float>(s, accumulate, 1e-6);
      }
    }
  }
}

// One thread may compute whole what several cut into tiles.
TEST(Gemm, ThreadsDoNotChangeBitsOfLargeProducts) {
  ThreadPool one(1), three(3);
  for (const auto& [m, n, k] : RowsToTry<std::array<int64_t, 3>>({{512, 384, 384},
                                                                  {65, 1300, 768},
                                                                  {696, 512, 822},
                                                                  {130, 1024, 777},
                                                                  {1024, 256, 974},
                                                                  {64, 256, 2048},
                                                                  {1024, 1024, 200}})) {
    for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        const cpu::GemmShape s{m, n, k, ta, tb, ta == Transpose::kYes ? m : k, tb == Transpose::kYes ? k : n, n};
        const auto [a, b, c] = Operands(s);
        const std::vector<float> fa = As<float>(a), fb = As<float>(b);
        for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
          std::vector<float> by_one = As<float>(c), by_three = by_one;
          cpu::ParallelGemm<float>(one, s, fa.data(), fb.data(), accumulate, by_one.data());
          cpu::ParallelGemm<float>(three, s, fa.data(), fb.data(), accumulate, by_three.data());
          EXPECT_TRUE(by_one == by_three)
              << m << "x" << n << "x" << k << " " << (ta == Transpose::kYes) << " " << (tb == Transpose::kYes);
        }
      }
    }
  }
}

// Whichever of them products are for on this processor, both give them.
TEST(Gemm, LibrariesMatchFloat64) {
  ThreadPool pool(2);
  const bool called = cpu::LibrariesAreCalled();
  for (const auto& [library, there] :
       {std::pair<cpu::SgemmFn, bool>{cpu::OneDnnSgemm, called}, {cpu::OpenBlasSgemm, cpu::HasOpenBlas()}}) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {7, 13, 5}, {257, 96, 129}}) {
      for (const cpu::GemmShape& s : ShapesOf(m, n, k)) {
        const auto [a, b, c] = Operands(s);
        std::vector<float> added = As<float>(c), whole = added;
        const std::vector<float> fa = As<float>(a), fb = As<float>(b);
        ASSERT_EQ(library(s, 0.5F, fa.data(), fb.data(), 1, added.data()), there);
        ASSERT_EQ(cpu::ParallelSgemm(pool, library, s, fa.data(), fb.data(), whole.data()), there);
        if (!there) continue;
        const auto want_added = Reference(s, 0.5, a, b, c, Accumulate::kAdd),
                   want_whole = Reference(s, 1, a, b, c, Accumulate::kOverwrite);
        for (size_t i = 0; i < c.size(); ++i) {
          ASSERT_NEAR(added[i], want_added[i], 1e-6 * std::sqrt(k + 1.0)) << m << "x" << n << "x" << k << " at " << i;
          ASSERT_NEAR(whole[i], want_whole[i], 1e-6 * std::sqrt(k + 1.0)) << m << "x" << n << "x" << k << " at " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace shoal
