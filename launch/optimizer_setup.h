// The optimizer of a job for its model, and how the model's parameters are shared out for it.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "launch/job.pb.h"
#include "models/model.h"
#include "optim/optimizer.h"
#include "parallel/data_parallel.h"

namespace shoal {

// `model` outlives the optimizer. InvalidArgument as MakeOptimizer's.
absl::StatusOr<std::unique_ptr<Optimizer>> OptimizerFor(const config::Job& job, const Model& model);

// How DataParallel stores the model of `job`: dtype, buckets, and the shards that the optimizer wants.
DataParallelOptions StorageFor(const config::Job& job, const Model& model, const Optimizer& optimizer,
                               DeviceKind device = DeviceKind::kCpu);

}  // namespace shoal
