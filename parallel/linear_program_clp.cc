// Linear programs by CLP, the solver of COIN-OR (EPL).
#include <coin/ClpConfig.h>

#include <coin/ClpSimplex.hpp>
#include <memory>

#include "parallel/linear_program.h"

namespace shoal {
namespace {

using Sense = LinearProgram::Sense;

class ClpSolver : public LinearSolver {
 public:
  explicit ClpSolver(const LinearProgram& program) : rows_(program.rows.size()), columns_(program.columns.size()) {
    std::vector<CoinBigIndex> starts = {0};
    std::vector<int> indices;
    std::vector<double> values, costs, low, high, at_least, at_most;
    for (const auto& column : program.columns) {
      for (const auto& entry : column.entries) {
        indices.push_back(entry.row);
        values.push_back(entry.value);
      }
      starts.push_back(static_cast<CoinBigIndex>(indices.size()));
      costs.push_back(column.cost);
      low.push_back(column.low);
      high.push_back(column.high);
    }
    for (const auto& row : program.rows) {
      at_least.push_back(row.sense == Sense::kAtMost ? -COIN_DBL_MAX : row.limit);
      at_most.push_back(row.sense == Sense::kAtLeast ? COIN_DBL_MAX : row.limit);
    }
    clp_.setLogLevel(0);
    // Columns have high bounds of thousands, by which weak duality multiplies what duals are off.
    clp_.setDualTolerance(1e-9);
    clp_.loadProblem(static_cast<int>(columns_), static_cast<int>(rows_), starts.data(), indices.data(), values.data(),
                     low.data(), high.data(), costs.data(), at_least.data(), at_most.data());
    clp_.setMaximumIterations(kIterations);
  }

  Answer Solve(const ColumnBounds& bounds, const std::string& basis) override {
    for (size_t j = 0; j < columns_; ++j) clp_.setColumnBounds(static_cast<int>(j), bounds.low[j], bounds.high[j]);
    if (basis.empty()) {
      ClpSolve options;
      options.setSolveType(ClpSolve::useDual);
      options.setPresolveType(ClpSolve::presolveOn);
      clp_.initialSolve(options);
    } else {
      clp_.copyinStatus(reinterpret_cast<const unsigned char*>(basis.data()));
      clp_.dual();
    }
    Answer answer;
    answer.duals.assign(clp_.dualRowSolution(), clp_.dualRowSolution() + rows_);
    if (clp_.isProvenOptimal()) {
      answer.kind = Answer::Kind::kOptimal;
      answer.values.assign(clp_.primalColumnSolution(), clp_.primalColumnSolution() + columns_);
      answer.basis.assign(reinterpret_cast<const char*>(clp_.statusArray()), rows_ + columns_);
    } else if (clp_.isProvenPrimalInfeasible()) {
      answer.kind = Answer::Kind::kInfeasible;
      const std::unique_ptr<double[]> ray(clp_.infeasibilityRay());
      if (ray != nullptr) answer.duals.assign(ray.get(), ray.get() + rows_);
      for (double& y : answer.duals) y = -y;  // CLP's rays ascend the other way
    }
    return answer;
  }

 private:
  static constexpr int kIterations = 20000;  // some 20 times what 512 sequences take

  const size_t rows_, columns_;
  ClpSimplex clp_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LinearSolver>> MakeLinearSolver(const LinearProgram& program) {
  return std::make_unique<ClpSolver>(program);
}

std::string LinearSolverName() { return "CLP " CLP_VERSION; }

}  // namespace shoal
