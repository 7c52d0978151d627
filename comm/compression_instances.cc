#include "comm/compression_instances.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/rng.h"

namespace shoal {

CompressionProblem RandomCompression(uint64_t seed, size_t layers, size_t options, CompressionFamily family) {
  const Rng rng({seed, RngPurpose::kTest, NameHash("planner")});
  uint64_t at = 0;
  const auto uniform = [&] { return static_cast<double>(rng.Uniform(0, at++)); };
  const auto normal = [&] { return static_cast<double>(rng.Normal(1, at++)); };
  CompressionProblem p;
  for (size_t l = 0; l < layers; ++l) {
    const double size = std::exp(9 + 6 * uniform()), norm = std::exp(1.2 * normal()) * std::pow(size, 0.25);
    std::vector<CompressionOption> row = {{size * 4, 0}};
    for (size_t o = 1; o < options; ++o) {
      const double bits =
          8.0 - 6.0 * static_cast<double>(o - 1) / static_cast<double>(std::max<size_t>(1, options - 2));
      CompressionOption option{size * bits / 8, std::pow(1.9 * norm * std::exp2(-bits), 2)};
      if (family == CompressionFamily::kMixed) {
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

// Lists of undominated partial plans, cut by the Lagrangian bound at the best price and by what is known already.
double CompressionOptimum(const CompressionProblem& p, double known) {
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

}  // namespace shoal
