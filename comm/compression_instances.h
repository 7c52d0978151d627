// Random compression problems and their optimum: what tests and `shoal bench planner` judge the planner by. Pure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/compression_planner.h"

namespace shoal {

// Sizes, norms and errors as research/lgreco.md §8 draws them; kMixed adds what makes hulls ragged. Option 0 is exact,
// the budget and the fallback are those of the middle option for all.
enum class CompressionFamily : uint8_t { kConvex, kMixed };
CompressionProblem RandomCompression(uint64_t seed, size_t layers, size_t options, CompressionFamily family);

// The cost of the cheapest plan within the budget, or `known` where none is cheaper. Exact, however long it takes:
// seconds for hundreds of layers where `known` is far from it.
double CompressionOptimum(const CompressionProblem& problem, double known);

}  // namespace shoal
