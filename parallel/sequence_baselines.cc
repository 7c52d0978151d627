// The baselines under the same cost model, and tier 0.
#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "parallel/sequence_packing.h"

namespace shoal {

using sequences::Draft;
using sequences::Packer;
using sequences::PackingProblem;

namespace sequences {

// Megatron-LM's dynamic context parallelism (hybrid_cp_schedule.py, data_schedule_utils.py), as far as it decides:
// work is s^2 / degree; a sequence asks for the least degree that holds it; from the longest on, each opens a group of
// that degree while ranks are free, else it joins the group with the least work that is large enough; groups take 5 %
// more work than the tallest sequence makes. Left-over ranks double the groups with the most work. Megatron's groups
// are what the ranks do next, ours a micro-batch, which costs something: so one also fills up to its even share.
Draft Greedy(const PackingProblem& problem) {
  constexpr double kSlack = 1.05;
  const auto work = [&](int p, int level) {
    const auto s = static_cast<double>(problem.tokens(p));
    return s * s / (1 << level);
  };
  Draft draft;
  draft.group_of.assign(static_cast<size_t>(problem.size()), -1);
  std::vector<int> left(static_cast<size_t>(problem.size()));
  for (int p = 0; p < problem.size(); ++p) left[static_cast<size_t>(p)] = p;
  for (int batch = 0; !left.empty(); ++batch) {
    double tallest = 0, all = 0;
    int64_t tokens = 0;
    for (const int p : left) {
      tallest = std::max(tallest, work(p, problem.least_level(p)));
      all += work(p, 0);
      tokens += problem.tokens(p);
    }
    const auto batches = static_cast<double>((tokens + problem.capacity() - 1) / problem.capacity());
    const double most = kSlack * std::max(tallest, all / problem.ranks() / batches);
    const size_t first = draft.groups.size();
    std::vector<double> works;  // of this micro-batch's groups
    int free = problem.ranks();
    std::vector<int> later;
    for (const int p : left) {
      const int level = problem.least_level(p);
      size_t to = draft.groups.size();
      if ((1 << level) <= free) {
        free -= 1 << level;
        draft.groups.push_back({level, batch, 0, 0});
        works.push_back(0);
      } else {
        for (size_t g = first; g < draft.groups.size(); ++g) {
          const auto& group = draft.groups[g];
          if (group.level < level || group.tokens + problem.tokens(p) > problem.capacity(group.level)) continue;
          if (works[g - first] + work(p, group.level) > most) continue;
          if (to == draft.groups.size() || works[g - first] < works[to - first]) to = g;
        }
      }
      if (to == draft.groups.size()) {
        later.push_back(p);
        continue;
      }
      works[to - first] += work(p, draft.groups[to].level);
      draft.groups[to].tokens += problem.tokens(p);
      draft.group_of[static_cast<size_t>(p)] = static_cast<int>(to);
    }
    while (free > 0) {
      size_t grows = draft.groups.size();
      for (size_t g = first; g < draft.groups.size(); ++g) {
        const int level = draft.groups[g].level;
        if ((1 << level) > free || level + 1 >= problem.levels()) continue;
        if (grows == draft.groups.size() || works[g - first] > works[grows - first]) grows = g;
      }
      if (grows == draft.groups.size()) break;
      free -= 1 << draft.groups[grows].level;
      ++draft.groups[grows].level;
      works[grows - first] /= 2;
    }
    left = std::move(later);
  }
  for (int p = 0; p < problem.size(); ++p) {
    auto& group = draft.groups[static_cast<size_t>(draft.group_of[static_cast<size_t>(p)])];
    group.seconds += problem.seconds(p)[group.level];
  }
  MeasureDraft(problem, draft);
  return draft;
}

}  // namespace sequences

namespace {

// The best single degree that divides the ranks and holds sequences of `longest` tokens.
absl::StatusOr<StepPlan> BestSingleDegree(const PackingProblem& problem, int64_t longest, absl::string_view planner) {
  Draft best;
  for (int l = 0; l < problem.levels(); ++l) {
    if (problem.ranks() % (1 << l) != 0 || problem.capacity(l) < longest) continue;
    Draft draft = sequences::SingleDegree(problem, l);
    if (draft.seconds < best.seconds) best = std::move(draft);
  }
  if (best.groups.empty()) {
    const int divisor = problem.ranks() & -problem.ranks();
    return absl::InvalidArgumentError(absl::StrCat(planner, ": no degree that divides ", problem.ranks(), " ranks (",
                                                   divisor, " at most) holds sequences of ", longest,
                                                   " tokens; planners of mixed degrees need none"));
  }
  return Finish(problem, best);
}

}  // namespace

absl::StatusOr<StepPlan> PlanStaticDegree(const SequencePlanRequest& request) {
  const PackingProblem problem(request);
  const int64_t longest = std::max(request.model->longest, problem.tokens(0));
  const int degree = request.degree;
  if (degree == 0) return BestSingleDegree(problem, longest, "static");
  if (degree < 1 || !std::has_single_bit(static_cast<unsigned>(degree)))
    return absl::InvalidArgumentError(absl::StrCat("static: degree ", degree, " is no power of two"));
  const int level = std::countr_zero(static_cast<unsigned>(degree));
  if (problem.ranks() % degree != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("static: degree ", degree, " does not divide ", problem.ranks(), " ranks"));
  if (level >= problem.levels())
    return absl::InvalidArgumentError(
        absl::StrCat("static: degree ", degree, " exceeds the highest degree, ", request.model->max_degree));
  if (problem.capacity(level) < longest)
    return absl::InvalidArgumentError(absl::StrCat(
        "static: degree ", degree, " holds ", problem.capacity(level), " tokens, and sequences have up to ", longest,
        "; degree ", std::bit_ceil(static_cast<uint64_t>((longest + problem.capacity(0) - 1) / problem.capacity(0))),
        " would hold them"));
  return Finish(problem, sequences::SingleDegree(problem, level));
}

absl::StatusOr<StepPlan> PlanDegreePerBatch(const SequencePlanRequest& request) {
  const PackingProblem problem(request);
  return BestSingleDegree(problem, problem.tokens(0), "per_batch");
}

absl::StatusOr<StepPlan> PlanGreedy(const SequencePlanRequest& request) {
  const PackingProblem problem(request);
  return Finish(problem, sequences::Greedy(problem));
}

absl::StatusOr<StepPlan> PlanTier0(const SequencePlanRequest& request) {
  const PackingProblem problem(request);
  Packer packer(problem);
  return Finish(problem, sequences::Tier0(problem, packer, nullptr));
}

}  // namespace shoal
