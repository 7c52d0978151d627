#include "launch/commands/bench_exchange.h"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/compression_planner.h"
#include "comm/world.h"
#include "runtime/base/rng.h"
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

namespace {

// Sizes, norms and errors as research/lgreco.md §8 draws them; the budget is that of the middle option for all.
CompressionProblem RandomProblem(uint64_t seed, size_t layers, size_t options) {
  const Rng rng({seed, RngPurpose::kTest, NameHash("planner")});
  uint64_t at = 0;
  const auto uniform = [&] { return static_cast<double>(rng.Uniform(0, at++)); };
  const auto normal = [&] { return static_cast<double>(rng.Normal(1, at++)); };
  const bool mixed = seed % 2 == 1;
  CompressionProblem p;
  for (size_t l = 0; l < layers; ++l) {
    const double size = std::exp(9 + 6 * uniform()), norm = std::exp(1.2 * normal()) * std::pow(size, 0.25);
    std::vector<CompressionOption> row = {{size * 4, 0}};
    for (size_t o = 1; o < options; ++o) {
      const double bits = 8.0 - 6.0 * static_cast<double>(o - 1) / static_cast<double>(options - 2);
      CompressionOption option{size * bits / 8, std::pow(1.9 * norm * std::exp2(-bits), 2)};
      if (mixed) {
        option.cost = option.cost * std::exp(0.35 * normal()) + 2000 * uniform();
        option.error_squares *= std::exp(0.3 * normal());
      }
      row.push_back(option);
    }
    p.budget += row[options / 2].error_squares;
    p.fallback.push_back(static_cast<int>(options / 2));
    p.layers.push_back(std::move(row));
  }
  return p;
}

// The cheapest plan within the budget: lists of undominated partial plans, cut by the Lagrangian bound at the best
// price and by what is known already. As long as it takes.
double Optimum(const CompressionProblem& p, double known) {
  const auto relaxed = [&](size_t from, double price) {
    double sum = 0;
    for (size_t l = from; l < p.layers.size(); ++l) {
      double least = p.layers[l][0].cost + price * p.layers[l][0].error_squares;
      for (const CompressionOption& o : p.layers[l]) least = std::min(least, o.cost + price * o.error_squares);
      sum += least;
    }
    return sum;
  };
  double low = 1e-30, high = 1e30;
  for (int i = 0; i < 200; ++i) {
    const double a = std::cbrt(low * low * high), b = std::cbrt(low * high * high);
    const bool right = relaxed(0, a) - a * p.budget < relaxed(0, b) - b * p.budget;
    (right ? low : high) = right ? a : b;
  }
  const double price = std::sqrt(low * high);
  std::vector<std::pair<double, double>> states = {{0, 0}}, all;  // squared error, cost
  for (size_t l = 0; l < p.layers.size(); ++l) {
    const double rest = relaxed(l + 1, price);
    all.clear();
    for (const auto& [error, cost] : states) {
      for (const CompressionOption& o : p.layers[l]) {
        const double e = error + o.error_squares, c = cost + o.cost;
        if (e <= p.budget && c + rest + price * (e - p.budget) < known) all.emplace_back(e, c);
      }
    }
    std::sort(all.begin(), all.end());
    states.clear();
    for (const auto& state : all) {
      if (states.empty() || state.second < states.back().second) states.push_back(state);
    }
  }
  return states.empty() ? known : std::min(known, states.back().second);
}

}  // namespace

absl::Status BenchPlanner(const BenchArgs& args) {
  nlohmann::json report;
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    for (const size_t layers : {size_t{30}, size_t{60}, size_t{200}}) {
      const CompressionProblem problem = RandomProblem(static_cast<uint64_t>(i), layers, 10);
      const double start = SteadySeconds();
      SHOAL_ASSIGN_OR_RETURN(const CompressionPlan plan, PlanCompression(problem));
      const double seconds = SteadySeconds() - start;
      if (i < args.warmup) continue;
      if (layers == 200) report["seconds"].push_back(seconds);
      report["gaps"].push_back(plan.cost / Optimum(problem, plan.cost) - 1);
      report["bound_gaps"].push_back(plan.gap());
    }
  }
  std::cout << report.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
