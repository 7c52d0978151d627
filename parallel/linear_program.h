// Linear programs as plain data, bounds on them that no solver has to be trusted for, and branching on integer columns.
//
// A solver gives dual values; what they prove is worked out here by weak duality in the form of Neumaier and Shcherbina
// (Mathematical Programming 99, 2004), so that a tolerance, an early stop or a fault of the solver can make a bound
// loose but not wrong. It takes columns whose bounds are finite.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace shoal {

// min sum of cost x, over columns x in [low, high] that meet every row.
struct LinearProgram {
  enum class Sense : uint8_t { kAtLeast, kAtMost, kEqual };
  struct Row {
    Sense sense = Sense::kAtLeast;
    double limit = 0;  // sum of entry x >=, <= or == limit
  };
  struct Entry {
    int row = 0;
    double value = 0;
  };
  struct Column {
    double cost = 0;
    double low = 0, high = 0;  // 0 <= low <= high, finite
    int priority = 0;          // above 0: takes whole numbers only, and the highest is branched on first
    std::vector<Entry> entries = {};
  };
  std::vector<Row> rows = {};
  std::vector<Column> columns = {};

  int AddRow(Sense sense, double limit);
  int AddColumn(double cost, double high, int priority = 0);  // from 0
  void Add(int row, int column, double value);  // an entry of its own; at most one for each row and column
};

// Of every column, in place of the program's own.
struct ColumnBounds {
  std::vector<double> low, high;
};
ColumnBounds BoundsOf(const LinearProgram& program);

// A number that no x within the bounds and the rows goes below: limit'y + sum_j min (cost_j - y'column_j) x_j. Holds
// for any duals, of any source; those of a sign that proves nothing (below 0 of a row kAtLeast, above of kAtMost) count
// as 0, and so do NaNs. Rounded down by more than the program's own rounding and this sum's.
double WeakDualityBound(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> duals);
// Whether these duals prove that nothing meets the bounds and the rows (Farkas).
bool ProvesInfeasible(const LinearProgram& program, const ColumnBounds& bounds, absl::Span<const double> duals);

// Solves one program under changing bounds.
class LinearSolver {
 public:
  virtual ~LinearSolver() = default;
  struct Answer {
    enum class Kind : uint8_t { kOptimal, kInfeasible, kStopped } kind = Kind::kStopped;
    std::vector<double> duals;   // of rows; kInfeasible: the ray that is said to prove it
    std::vector<double> values;  // of columns; kOptimal only
    std::string basis;           // to start from
  };
  // From an earlier answer's basis; empty: from scratch. Deterministic, on the calling thread.
  virtual Answer Solve(const ColumnBounds& bounds, const std::string& basis) = 0;
};
// The one that this build has. Unimplemented names the package to install.
absl::StatusOr<std::unique_ptr<LinearSolver>> MakeLinearSolver(const LinearProgram& program);
std::string LinearSolverName();  // "CLP 1.17.6"; empty: there is none
inline bool HasLinearSolver() { return !LinearSolverName().empty(); }

struct IntegerBound {
  double bound = 0;  // no x that is whole where it has to be goes below it
  int solves = 0;
  int open = 0;  // leaves that could have been divided further
};
// Branch and bound without an incumbent: divides the leaf with the least bound, at most `solves` linear programs in
// all. Every leaf's bound is WeakDualityBound's. Internal: the program itself could not be solved.
absl::StatusOr<IntegerBound> BoundIntegerProgram(const LinearProgram& program, LinearSolver& solver, int solves);

}  // namespace shoal
