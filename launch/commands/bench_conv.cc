// bench conv: each distinct convolution of a job's ResNet, forward and both backwards, by every way to compute it.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <vector>

#include "absl/functional/function_ref.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/resolve.h"
#include "models/resnet_spec.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/image_ops.h"
#include "runtime/tensor/arena.h"

namespace shoal {
namespace {

using ops::ConvPath;

Tensor Random(Shape shape) {
  const Tensor t = Tensor::Zeros(std::move(shape), DType::kF32);
  const Rng rng({1, RngPurpose::kTest, NameHash("bench_conv")});
  for (int64_t i = 0; i < t.size(); ++i) t.data<float>()[i] = rng.Uniform(0, static_cast<uint64_t>(i)) - 0.5f;
  return t;
}

double FastestSeconds(const BenchArgs& args, absl::FunctionRef<void()> fn) {
  double best = 0;
  for (int i = 0; i < args.steps; ++i) {
    const double start = SteadySeconds();
    fn();
    const double seconds = SteadySeconds() - start;
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

nlohmann::json Measure(const BenchArgs& args, int64_t images, const ConvLayer& l, OpContext& ctx, Arena& arena) {
  const int64_t padding = l.kernel / 2, side = ops::ConvExtent(l.size, l.kernel, l.stride, padding);
  const Tensor x = Random({images, l.size, l.size, l.in}), w = Random({l.out, l.kernel, l.kernel, l.in / l.groups}),
               dy = Random({images, side, side, l.out}), y = Tensor::Zeros(dy.shape(), DType::kF32),
               dx = Tensor::Zeros(x.shape(), DType::kF32), dw = Tensor::Zeros(w.shape(), DType::kF32);
  const double gflop = 2e-9 * static_cast<double>(y.size() * l.kernel * l.kernel * l.in / l.groups);
  nlohmann::json row = {{"name", l.name},     {"size", l.size},     {"in", l.in},    {"out", l.out},
                        {"kernel", l.kernel}, {"stride", l.stride}, {"gflop", gflop}};
  ops::Conv2dOptions options{.stride = l.stride, .padding = padding, .groups = l.groups};
  const auto add = [&](const char* path) {
    row[path] = {{"forward", FastestSeconds(args, [&] { ops::Conv2dFwd(ctx, arena, x, w, y, options); })},
                 {"backward_input", FastestSeconds(args, [&] { ops::Conv2dBwdInput(ctx, arena, dy, w, dx, options); })},
                 {"backward_weight", FastestSeconds(args, [&] {
                    ops::Conv2dBwdWeight(ctx, arena, dy, x, dw, ops::Accumulate::kOverwrite, options);
                  })}};
  };
  add("auto");
  for (const auto& [name, path] : {std::pair("im2col", ConvPath::kIm2col), std::pair("matmul", ConvPath::kMatmul),
                                   std::pair("taps", ConvPath::kTaps), std::pair("winograd", ConvPath::kWinograd)}) {
    options.path = path;
    if (ops::ConvServes(x.shape(), w.shape(), DType::kF32, options)) add(name);
  }
  return row;
}

absl::Status Bench(const BenchArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const auto loaded, LoadJob(args.job.job, args.job.sets));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, ResolveJob(loaded, 1));
  if (!job.model().has_resnet()) return absl::InvalidArgumentError("bench conv takes a job with a resnet");
  SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(int64_t{64} << 30, DeviceKind::kCpu));
  ThreadPool pool(args.threads);
  OpContext ctx{.pool = &pool};
  nlohmann::json rows = nlohmann::json::array();
  std::set<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>> seen;
  for (const ConvLayer& l : ConvLayers(job.model().resnet())) {
    if (seen.emplace(l.in, l.out, l.kernel, l.stride, l.groups, l.size).second)
      rows.push_back(Measure(args, job.global_batch().images(), l, ctx, *arena));
  }
  std::cout << nlohmann::json{{"images", job.global_batch().images()},
                              {"threads", args.threads},
                              {"target", cpu::DispatchTarget()},
                              {"layers", rows}}
                   .dump()
            << std::endl;
  return absl::OkStatus();
}

}  // namespace

int RunBenchConv(const BenchArgs& args) {
  const absl::Status status = Bench(args);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace shoal
