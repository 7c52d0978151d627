#include "parallel/linear_program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"

namespace shoal {
namespace {

using Sense = LinearProgram::Sense;

enum class Costs : uint8_t { kCount, kAreZero };

double Useful(Sense sense, double dual) {
  if (!std::isfinite(dual)) return 0;
  if (sense == Sense::kAtLeast) return std::max(0.0, dual);
  if (sense == Sense::kAtMost) return std::min(0.0, dual);
  return dual;
}

double DualBound(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> duals,
                 Costs costs) {
  std::vector<double> y(program.rows.size(), 0);
  double sum = 0, size = 0;  // size: of all terms, whatever their sign
  for (size_t i = 0; i < y.size() && i < duals.size(); ++i) {
    y[i] = Useful(program.rows[i].sense, duals[i]);
    sum += program.rows[i].limit * y[i];
    size += std::abs(program.rows[i].limit * y[i]);
  }
  for (size_t j = 0; j < program.columns.size(); ++j) {
    const auto& column = program.columns[j];
    double reduced = costs == Costs::kCount ? column.cost : 0, terms = std::abs(reduced);
    for (const auto& entry : column.entries) {
      const double term = entry.value * y[static_cast<size_t>(entry.row)];
      reduced -= term;
      terms += std::abs(term);
    }
    sum += std::min(reduced * bounds.low[j], reduced * bounds.high[j]);
    size += terms * bounds.high[j];
  }
  // Rounding of sums of some thousand terms is 1e-13 of their size at most, and that of the entries is less.
  constexpr double kRounding = 1e-12;
  return sum - kRounding * size;
}

struct Leaf {
  ColumnBounds bounds;
  double bound = 0;
  std::string basis;
  int column = -1;  // to branch on; -1: there is none
  double value = 0;
};

// The column of the highest priority that is furthest from a whole number; -1: all are whole.
int BranchColumn(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> values) {
  constexpr double kWhole = 1e-5;
  int best = -1;
  double furthest = 0;
  for (size_t j = 0; j < values.size(); ++j) {
    const int priority = program.columns[j].priority;
    const double from = std::abs(values[j] - std::round(values[j]));
    if (priority == 0 || from < kWhole || bounds.low[j] == bounds.high[j]) continue;
    const int before = best < 0 ? 0 : program.columns[static_cast<size_t>(best)].priority;
    if (priority < before || (priority == before && from <= furthest)) continue;
    best = static_cast<int>(j);
    furthest = from;
  }
  return best;
}

}  // namespace

int LinearProgram::AddRow(Sense sense, double limit) {
  rows.push_back({sense, limit});
  return static_cast<int>(rows.size()) - 1;
}

int LinearProgram::AddColumn(double cost, double high, int priority) {
  columns.push_back({cost, 0, high, priority});
  return static_cast<int>(columns.size()) - 1;
}

void LinearProgram::Add(int row, int column, double value) {
  columns[static_cast<size_t>(column)].entries.push_back({row, value});
}

ColumnBounds BoundsOf(const LinearProgram& program) {
  ColumnBounds bounds;
  for (const auto& column : program.columns) {
    bounds.low.push_back(column.low);
    bounds.high.push_back(column.high);
  }
  return bounds;
}

double WeakDualityBound(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> duals) {
  return DualBound(program, bounds, duals, Costs::kCount);
}

bool ProvesInfeasible(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> duals) {
  return DualBound(program, bounds, duals, Costs::kAreZero) > 0;
}

absl::StatusOr<IntegerBound> BoundIntegerProgram(const LinearProgram& program, LinearSolver& solver, int solves) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  IntegerBound result;
  const auto solve = [&](Leaf& leaf) {
    ++result.solves;
    LinearSolver::Answer answer = solver.Solve(leaf.bounds, leaf.basis);
    leaf.column = -1;
    if (answer.kind == LinearSolver::Answer::Kind::kInfeasible) {
      if (ProvesInfeasible(program, leaf.bounds, answer.duals)) leaf.bound = kInfinity;
      return;
    }
    leaf.bound = std::max(leaf.bound, WeakDualityBound(program, leaf.bounds, answer.duals));
    if (answer.kind != LinearSolver::Answer::Kind::kOptimal) return;
    leaf.basis = std::move(answer.basis);
    leaf.column = BranchColumn(program, leaf.bounds, answer.values);
    if (leaf.column >= 0) leaf.value = answer.values[static_cast<size_t>(leaf.column)];
  };
  std::vector<Leaf> leaves(1);
  leaves[0].bounds = BoundsOf(program);
  leaves[0].bound = -kInfinity;
  solve(leaves[0]);
  if (!std::isfinite(leaves[0].bound)) return absl::InternalError("the linear program of all plans was not solved");
  while (true) {
    const auto least =
        std::min_element(leaves.begin(), leaves.end(), [](const Leaf& a, const Leaf& b) { return a.bound < b.bound; });
    if (least->column < 0 || result.solves + 2 > solves) {
      result.bound = least->bound;
      break;
    }
    Leaf above = *least;
    const auto j = static_cast<size_t>(least->column);
    const double below = std::floor(least->value);
    least->bounds.high[j] = below;
    above.bounds.low[j] = below + 1;
    solve(*least);
    solve(above);
    leaves.push_back(std::move(above));
  }
  for (const Leaf& leaf : leaves) result.open += leaf.column >= 0 && leaf.bound < kInfinity;
  return result;
}

}  // namespace shoal
