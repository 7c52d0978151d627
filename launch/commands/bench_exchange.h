// bench exchange and bench planner: what gradient exchange and its planning cost.
#pragma once

#include "absl/status/status.h"
#include "launch/commands.h"

namespace shoal {

// Under mpirun: an all-reduce of `parameters` f32 elements, ours and MPI_Allreduce, in turn. JSON: "bytes", "ranks",
// "ours_seconds", "mpi_seconds", the slowest rank's of every repeat.
absl::Status BenchExchange(const BenchArgs& args);

// Plans of 200 layers x 10 options and of smaller ones, on random instances. JSON: "seconds" of the large ones, and of
// all instances "gaps" to the optimum that an unlimited search finds and "bound_gaps" to the bound that plans print.
absl::Status BenchPlanner(const BenchArgs& args);

}  // namespace shoal
