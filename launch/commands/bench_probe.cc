// bench probe: the sgemm peak that every figure is set beside, 2048^3 in fp32 on the asked number of threads.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/commands.h"
#include "runtime/base/thread_pool.h"
#include "runtime/obs/span.h"
#include "runtime/ops/cpu/gemm.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/openblas_adapter.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

int RunProbe(int threads) {
  constexpr int kSide = 2048, kTries = 6;
  constexpr cpu::GemmShape kSquare{.m = kSide, .n = kSide, .k = kSide, .lda = kSide, .ldb = kSide, .ldc = kSide};
  const Shape square = {kSide, kSide};
  const Tensor a = Tensor::Zeros(square, DType::kF32), b = Tensor::Zeros(square, DType::kF32),
               c = Tensor::Zeros(square, DType::kF32);
  ThreadPool pool(threads);
  OpContext ctx{.pool = &pool};
  ops::Fill(ctx, a, 1);
  ops::Fill(ctx, b, 1);
  // GFLOP/s of the fastest of a few products by a library, cut over our threads as ops' are.
  const auto rate = [&](cpu::SgemmFn library) -> std::optional<double> {
    double best = 0;
    for (int i = 0; i < kTries; ++i) {
      const double start = SteadySeconds();
      if (!cpu::ParallelSgemm(pool, library, kSquare, a.data<float>(), b.data<float>(), c.data<float>()))
        return std::nullopt;
      best = std::max(best, 2.0 * kSide * kSide * kSide / (SteadySeconds() - start) / 1e9);
    }
    return best;
  };
  const auto json = [](std::optional<double> r) { return r ? nlohmann::json(*r) : nlohmann::json(); };
  const std::optional<double> onednn = rate(cpu::OneDnnSgemm), openblas = rate(cpu::OpenBlasSgemm);
  std::cout << nlohmann::json{{"gflops", std::max(onednn.value_or(0), openblas.value_or(0))},
                              {"onednn", json(onednn)},
                              {"openblas", json(openblas)},
                              {"threads", threads}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace shoal
