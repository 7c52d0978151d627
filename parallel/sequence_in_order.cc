// What no planning would do: sequences in the order of the batch, each into a group of the least degree that holds it,
// the next micro-batch when one does not fit. The baseline that shows what balance is worth.
#include <algorithm>
#include <vector>

#include "parallel/sequence_packing.h"

namespace shoal {

using sequences::Draft;
using sequences::PackingProblem;

absl::StatusOr<StepPlan> PlanInOrder(const SequencePlanRequest& request) {
  const PackingProblem problem(request);
  std::vector<int> position(static_cast<size_t>(problem.size()));  // of each sequence
  for (int p = 0; p < problem.size(); ++p) position[static_cast<size_t>(problem.sequence(p))] = p;
  Draft draft;
  draft.group_of.resize(position.size());
  int batch = 0, free = problem.ranks();
  size_t first = 0;  // group of this micro-batch
  for (const int p : position) {
    const int level = problem.least_level(p);
    const auto fits = [&](const Draft::Group& group) {
      return group.level == level && group.tokens + problem.tokens(p) <= problem.capacity(level);
    };
    auto to = std::find_if(draft.groups.begin() + static_cast<int64_t>(first), draft.groups.end(), fits);
    if (to == draft.groups.end()) {
      if ((1 << level) > free) {
        ++batch;
        free = problem.ranks();
        first = draft.groups.size();
      }
      free -= 1 << level;
      draft.groups.push_back({level, batch, 0, 0});
      to = draft.groups.end() - 1;
    }
    to->tokens += problem.tokens(p);
    to->seconds += problem.seconds(p)[level];
    draft.group_of[static_cast<size_t>(p)] = static_cast<int>(to - draft.groups.begin());
  }
  MeasureDraft(problem, draft);
  return Finish(problem, draft);
}

}  // namespace shoal
