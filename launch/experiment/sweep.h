// A sweep: a base job times its axes, ranks and seeds, as runs that have names and jobs of their own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/experiment/experiment.pb.h"
#include "launch/job.pb.h"

namespace shoal {

struct SweepArgs {
  std::string file;                    // the experiment
  std::string folder;                  // empty: the experiment's own
  std::vector<std::string> sets;       // fields of every run's job; not those of an axis
  std::vector<std::string> overrides;  // fields of the experiment: "seeds=[1]"
  std::vector<std::string> points;     // more steps along its axes, as AddPoint takes them
};

// What runs differ in, seeds apart: an axis, or "ranks".
struct Dimension {
  std::string name;
  std::vector<std::string> labels;  // as written in the file; unique
};

// The labels as numbers; empty when one is none.
std::vector<double> Numbers(const Dimension& dimension);

struct SweepRun {
  int number = 0;          // from 1, in order of expansion
  std::string name;        // "learning_rate=1e-3,seed=2": of its folder
  std::vector<size_t> at;  // where it lies on each dimension
  uint64_t seed = 1;
  int ranks = 1;
  config::Job job;       // every field of the base and of its place on the axes, unresolved
  config::Job resolved;  // what its trainer will make of it
};

struct Sweep {
  config::Experiment config;
  std::string folder;
  std::vector<Dimension> dimensions;  // the axes in order, then "ranks" where they are given
  std::vector<SweepRun> runs;         // the first axis varies slowest, then ranks, seeds fastest

  std::string RunDir(const SweepRun& run) const { return folder + "/runs/" + run.name; }
  std::string JobFile(const SweepRun& run) const { return folder + "/jobs/" + run.name + ".textproto"; }
};

// Reads and expands an experiment. The same file gives the same runs; more values on an axis, more seeds or ranks leave
// the names of the others as they are. InvalidArgument lists every problem of the file, of its base job and of every
// run's job, each with its place.
absl::StatusOr<Sweep> LoadSweep(const SweepArgs& args);

}  // namespace shoal
