// Measurements of optimizers, each a line of JSON.
#pragma once

#include "absl/status/status.h"
#include "launch/commands.h"

namespace shoal {

// Seconds of args.steps updates of args.parameters fp32 parameters by args.kind (adamw, clip_adamw, lars, lamb), in
// turn with as many runs of a kernel that reads four streams and writes three. clip_adamw takes the global norm first.
absl::Status BenchOptimizer(const BenchArgs& args);

// Seconds of Muon's update and the gathering of weights, of args.job's model on two thread ranks of args.threads
// threads each: matrices shared out among owners (ZeRO 1), in turn with every rank updating all of them (ZeRO 0).
absl::Status BenchMuon(const BenchArgs& args);

}  // namespace shoal
