// plan --cluster: step times on a cluster that is not at hand, by planner and number of ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace shoal {

struct PlanClusterArgs {
  std::string file;               // parallel/cluster.proto, text format
  std::vector<std::string> sets;  // of its fields
  std::string lengths;            // as PlanLengthsArgs::file; empty: the cluster file's
  std::vector<int> ranks;         // empty: those of the cluster file
  std::string planner;            // empty: all of them
  int degree = 0;                 // of planner static; 0: the best
  bool explain = false;           // what each planner's step is spent on
  bool json = false;              // one line of JSON instead of tables
  std::string plot;               // tokens per second over ranks, SVG; empty: none
};
// Returns the exit code: 2 for the cluster file, numbers of ranks and sequences that no degree can hold, 3 for lengths.
int RunPlanCluster(const PlanClusterArgs& args);

}  // namespace shoal
