#include "runtime/ops/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/base/rng.h"

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

template <class T>
void ExpectMatchesReference(const cpu::GemmShape& s, Accumulate accumulate, double bound) {
  const bool ta = s.transpose_a == Transpose::kYes, tb = s.transpose_b == Transpose::kYes;
  const auto a = Random((ta ? s.k : s.m) * s.lda, "a"), b = Random((tb ? s.n : s.k) * s.ldb, "b"),
             c = Random(s.m * s.ldc, "c");
  std::vector<double> want = c;
  for (int64_t m = 0; m < s.m; ++m) {
    for (int64_t n = 0; n < s.n; ++n) {
      double sum = accumulate == Accumulate::kAdd ? c[m * s.ldc + n] : 0;
      for (int64_t k = 0; k < s.k; ++k)
        sum += a[ta ? k * s.lda + m : m * s.lda + k] * b[tb ? n * s.ldb + k : k * s.ldb + n];
      want[m * s.ldc + n] = sum;
    }
  }
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
    for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
          const cpu::GemmShape s = {
              m, n, k, ta, tb, (ta == Transpose::kYes ? m : k) + 3, (tb == Transpose::kYes ? k : n) + 5, n + 1};
          ExpectMatchesReference<float>(s, accumulate, 1e-6);
          ExpectMatchesReference<double>(s, accumulate, 1e-14);
        }
      }
    }
  }
}

}  // namespace
}  // namespace shoal
