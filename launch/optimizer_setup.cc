#include "launch/optimizer_setup.h"

#include "launch/model_setup.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<Optimizer>> OptimizerFor(const config::Job& job, const Model& model) {
  return MakeOptimizer(job.optim(), model.params(), ScaleOf(job));
}

DataParallelOptions StorageFor(const config::Job& job, const Model& model, const Optimizer& optimizer,
                               DeviceKind device) {
  DataParallelOptions options{
      .zero_stage = job.parallel().zero(),
      .compute = job.runtime().compute() == config::RuntimeConfig::BF16 ? DType::kBF16 : DType::kF32,
      .bucket_bytes = static_cast<int64_t>(job.comm().bucket_mib() * (1 << 20)),
      .granularity = optimizer.granularity(),
      .update_cost = {},
      .device = device};
  options.codecs = MakeGradientCodecs(job.comm().compression(), model.params(), job.seed(), job.parallel().zero());
  for (const Param* param : model.params()) options.update_cost.push_back(optimizer.UpdateCost(*param));
  return options;
}

}  // namespace shoal
