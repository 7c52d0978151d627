// bench parity: a ResNet's numbers for another program to compare with its own.
#pragma once

#include "absl/status/status.h"
#include "launch/commands.h"

namespace shoal {

// Of the job's ResNet with its initial_weights, on `folder`/images.safetensors: "images" f32 [S, N, H, W, C], "labels"
// i32 [S, N]. JSON: "logits" of the first N in fp32, evaluated; "losses" of S steps of plain SGD in float64 at
// optim.learning_rate, each on its own N; "gradient_errors", by parameter: norm of the first step's fp32 gradient minus
// the float64 one, over the norm of the latter.
absl::Status BenchParity(const BenchArgs& args);

}  // namespace shoal
