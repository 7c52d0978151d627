#include "launch/commands/bench_exchange.h"

#include <mpi.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/compression_instances.h"
#include "comm/compression_planner.h"
#include "comm/world.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {

absl::Status BenchExchange(const BenchArgs& args) {
  if (!UnderMpiLauncher())
    return absl::InvalidArgumentError("bench exchange compares with MPI_Allreduce: start it under mpirun");
  SHOAL_ASSIGN_OR_RETURN(auto world, MpiWorld({}));
  const int64_t n = args.parameters.value_or(1 << 20);
  const Tensor x = Tensor::Zeros({n}, DType::kF32);
  std::vector<float> theirs(static_cast<size_t>(n), 0.0F);
  nlohmann::json report = {{"bytes", n * 4}, {"ranks", world->size()}};
  const auto slowest = [&](double seconds) -> absl::StatusOr<double> {
    SHOAL_ASSIGN_OR_RETURN(const auto all, AllReduceValues(*world, {seconds}, ReduceOp::kMax, {.tag = "slowest"}));
    return all[0];
  };
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    SHOAL_RETURN_IF_ERROR(world->Barrier({.tag = "start"})->Wait());
    double start = SteadySeconds();
    SHOAL_RETURN_IF_ERROR(world->AllReduce(x, ReduceOp::kSum, {.tag = "bench"})->Wait());
    SHOAL_ASSIGN_OR_RETURN(const double ours, slowest(SteadySeconds() - start));
    SHOAL_RETURN_IF_ERROR(world->Barrier({.tag = "start"})->Wait());
    start = SteadySeconds();
    MPI_Allreduce(MPI_IN_PLACE, theirs.data(), static_cast<int>(n), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    SHOAL_ASSIGN_OR_RETURN(const double mpi, slowest(SteadySeconds() - start));
    if (i < args.warmup) continue;
    report["ours_seconds"].push_back(ours);
    report["mpi_seconds"].push_back(mpi);
  }
  if (world->rank() == 0) std::cout << report.dump() << std::endl;
  world.reset();
  FinalizeMpi();
  return absl::OkStatus();
}

absl::Status BenchPlanner(const BenchArgs& args) {
  nlohmann::json report;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    for (const size_t layers : {size_t{30}, size_t{60}, size_t{200}}) {
      const CompressionProblem problem = RandomCompression(
          static_cast<uint64_t>(i), layers, 10, i % 2 == 1 ? CompressionFamily::kMixed : CompressionFamily::kConvex);
      const double start = SteadySeconds();
      SHOAL_ASSIGN_OR_RETURN(const CompressionPlan plan, PlanCompression(problem));
      const double seconds = SteadySeconds() - start;
      if (i < args.warmup) continue;
      if (layers == 200) report["seconds"].push_back(seconds);
      report["gaps"].push_back(plan.cost / CompressionOptimum(problem, plan.cost) - 1);
      report["bound_gaps"].push_back(plan.gap());
    }
  }
  std::cout << report.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
