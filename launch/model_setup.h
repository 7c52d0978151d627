// The model of a job, with what the optimizer's width rule multiplies in it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "launch/job.pb.h"
#include "models/model.h"
#include "optim/width_rule.h"

namespace shoal {

// Width and depth of the job's transformer; zeros for other models.
ModelScale ScaleOf(const config::Job& job);

// What activations and gradients of a resolved job are held in.
DType ComputeType(const config::Job& job);

// The model of a resolved job: multipliers and initial standard deviations are those of optim.width_rule.
// InvalidArgument as WidthRatios'.
absl::StatusOr<std::unique_ptr<Model>> ModelFor(const config::Job& job, Recomputation recomputed = {});

// What the job's width rule multiplies in its transformer.
WidthMultipliers MultipliersOf(const config::Job& job);
// For people: what the width rule of a resolved job multiplies in its model; "" where there is none.
std::string WidthRuleText(const config::Job& job);

}  // namespace shoal
