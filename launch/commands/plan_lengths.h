// plan --lengths: sequence plans of a file of lengths, without training, and how the planners compare.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

struct PlanLengthsArgs {
  std::string file;  // lengths, one a line; quantiles (CSV "probability,tokens"); or a dataset's prefix
  int ranks = 1;
  std::string planner;         // empty: all of them
  int degree = 0;              // of planner static; 0: the best
  std::string model = "7b";    // of the published constants
  std::optional<int> batch;    // sequences of a step. Unset: 512; of a file of lengths all of them
  std::optional<int> batches;  // steps. Unset: 10 of quantiles and datasets, of a file of lengths all
  int64_t longest =
      384 * 1024;        // tokens that a static degree has to hold; longer ones of quantiles and datasets are left out
  uint64_t seed = 1;     // of sampling from quantiles
  bool explain = false;  // the first step's plan, group by group
  bool json = false;     // one line of JSON instead of tables
  std::string bound;     // quick, lp or search; empty: lp, or quick where this build cannot solve linear programs
};
// Returns the exit code: 2 for a sequence that no degree can hold and what else the command line can mend, 3 for files.
int RunPlanLengths(const PlanLengthsArgs& args);

// Lengths of steps, as a file of any of the three kinds gives them.
struct LengthBatches {
  std::vector<std::vector<int32_t>> batches;
  std::string source;         // "FILE: 10 batches of 512 sampled with seed 1", for people
  std::vector<size_t> lines;  // of each sequence of a file of lengths, over all batches; empty otherwise
  int64_t left_out = 0;       // sequences longer than `longest`
};
// DataLoss and NotFound name the file, the line and the reason.
absl::StatusOr<LengthBatches> ReadLengths(const PlanLengthsArgs& args, int64_t longest);

}  // namespace shoal
