#include "parallel/sequence_planner.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr SequencePlanner kPlanners[] = {
    {"flexsp", "tier 0, then a search over deadlines of all micro-batches at once", PlanFlexSp},
    {"tier0", "sorted chunks and every single degree, each packed to a deadline", PlanTier0},
    {"static", "the best one degree that holds the longest sequence allowed", PlanStaticDegree, true},
    {"per_batch", "the best one degree for each batch", PlanDegreePerBatch, true},
    {"sort_and_chunk", "FlexSP's pipeline, rounded lengths and all, with tier 0's packing in place of its MILP",
     PlanSortAndChunk},
    {"greedy", "Megatron-LM's: the least degree that holds a sequence, balanced by s^2 / degree", PlanGreedy},
    {"in_order", "no planning: in the batch's order, each with the least degree that holds it", PlanInOrder}};

}  // namespace

absl::Span<const SequencePlanner> SequencePlanners() { return kPlanners; }

absl::StatusOr<PlannedStep> PlanSequences(const SequencePlanRequest& request, absl::string_view planner) {
  const auto table = SequencePlanners();
  const auto* row = std::find_if(table.begin(), table.end(), [&](const auto& p) { return p.name == planner; });
  if (row == table.end()) {
    std::vector<std::string> names;
    for (const auto& p : table) names.emplace_back(p.name);
    const std::string near = DidYouMean(planner, names);
    return absl::InvalidArgumentError(absl::StrCat("no planner '", planner, "'",
                                                   near.empty() ? "" : absl::StrCat("; did you mean '", near, "'"),
                                                   "; there are ", absl::StrJoin(names, ", ")));
  }
  const SequenceCostModel& model = *request.model;
  SHOAL_RETURN_IF_ERROR(CheckLengths(request.lengths, request.ranks, model));
  PlannedStep step;
  if (request.lengths.empty()) return step;
  SHOAL_ASSIGN_OR_RETURN(step.plan, row->plan(request));
  if (const absl::Status valid = ValidatePlan(step.plan, request.lengths, request.ranks, model); !valid.ok())
    return absl::InternalError(absl::StrCat("planner ", planner, " made a wrong plan: ", valid.message()));
  step.seconds = PlanCost(step.plan, request.lengths, model);
  step.bounds = BoundStep(request.lengths, request.ranks, model);
  if (step.seconds < step.bound())
    return absl::InternalError(
        absl::StrCat("planner ", planner, " takes ", step.seconds, " s, below the bound of ", step.bound(), " s"));
  return step;
}

}  // namespace shoal
