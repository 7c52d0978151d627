// bench probe: the sgemm peak that every figure is set beside, 2048^3 in fp32 on the asked number of threads.
#include <dlfcn.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/functional/function_ref.h"
#include "launch/commands.h"
#include "runtime/base/thread_pool.h"
#include "runtime/obs/span.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/tensor.h"

namespace shoal {
namespace {

constexpr int kSide = 2048, kTries = 6;

// GFLOP/s of the fastest of a few calls.
double Fastest(absl::FunctionRef<void()> multiply) {
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const double start = SteadySeconds();
    multiply();
    best = std::max(best, 2.0 * kSide * kSide * kSide / (SteadySeconds() - start) / 1e9);
  }
  return best;
}

// OpenBLAS is no dependency of Shoal: it is loaded for this comparison, where it is installed. Its declarations are
// those of cblas.h with 32-bit integers.
using SetThreads = void (*)(int threads);
using Sgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                       int lda, const float* b, int ldb, float beta, float* c, int ldc);

std::optional<double> OpenBlas(int threads, const Tensor& a, const Tensor& b, const Tensor& c) {
  constexpr int kRowMajor = 101, kNoTranspose = 111;
  void* const library = ::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::nullopt;
  const auto set_threads = reinterpret_cast<SetThreads>(::dlsym(library, "openblas_set_num_threads"));
  const auto sgemm = reinterpret_cast<Sgemm>(::dlsym(library, "cblas_sgemm"));
  if (set_threads == nullptr || sgemm == nullptr) return std::nullopt;
  set_threads(threads);
  return Fastest([&] {
    sgemm(kRowMajor, kNoTranspose, kNoTranspose, kSide, kSide, kSide, 1, a.data<float>(), kSide, b.data<float>(), kSide,
          0, c.data<float>(), kSide);
  });
}

}  // namespace

int RunProbe(int threads) {
  const Shape square = {kSide, kSide};
  const Tensor a = Tensor::Zeros(square, DType::kF32), b = Tensor::Zeros(square, DType::kF32),
               c = Tensor::Zeros(square, DType::kF32);
  double onednn = 0;
  {
    ThreadPool pool(threads);  // gone before OpenBLAS's own threads come
    OpContext ctx{.pool = &pool};
    ops::Fill(ctx, a, 1);
    ops::Fill(ctx, b, 1);
    onednn = Fastest([&] { ops::Matmul(ctx, a, b, c); });
  }
  const std::optional<double> openblas = OpenBlas(threads, a, b, c);
  std::cout << nlohmann::json{{"gflops", std::max(onednn, openblas.value_or(0))},
                              {"onednn", onednn},
                              {"openblas", openblas ? nlohmann::json(*openblas) : nlohmann::json()},
                              {"threads", threads}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace shoal
