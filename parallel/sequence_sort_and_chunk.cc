// FlexSP's pipeline as published (arXiv 2412.01523 §4.1.3, §4.2, and its code): sort, chunk by tokens, round the
// lengths of a chunk up to a few limits, pack. Members are charged their limit in memory and time, also where numbers
// of chunks are compared; our packing stands in for the MILP. The plan's cost is that of the true lengths, as of every
// plan.
#include <algorithm>
#include <limits>
#include <utility>

#include "parallel/sequence_packing.h"

namespace shoal {
namespace sequences {
namespace {

// A chunk of consecutive positions, packed with rounded lengths. `order`: its sequences as the draft counts them.
struct RoundedChunk {
  Draft draft;
  std::vector<int32_t> order;
};

// As the paper's code: more limits than 16 where rounding would eat more than half of the memory that is left.
std::vector<int32_t> RoundChunk(const PackingProblem& problem, absl::Span<const int32_t> lengths, int64_t tokens) {
  constexpr int kLimits = 16;
  for (int limits = kLimits;; limits *= 2) {
    std::vector<int32_t> rounded = RoundUp(lengths, limits);
    int64_t sum = 0;
    for (const int32_t length : rounded) sum += length;
    if (sum <= (tokens + problem.capacity()) / 2 || limits >= static_cast<int>(lengths.size())) return rounded;
  }
}

bool PackRounded(const PackingProblem& problem, int begin, int end, RoundedChunk* chunk) {
  std::vector<int32_t> lengths;
  for (int p = begin; p < end; ++p) lengths.push_back(static_cast<int32_t>(problem.tokens(p)));
  const std::vector<int32_t> rounded = RoundChunk(problem, lengths, problem.tokens(begin, end));
  const PackingProblem seen({.lengths = rounded, .ranks = problem.ranks(), .model = &problem.model()});
  Packer packer(seen);
  if (!PackChunk(seen, packer, 0, seen.size(), &chunk->draft)) return false;
  GrowGroups(seen, chunk->draft);
  for (int p = 0; p < seen.size(); ++p) chunk->order.push_back(begin + seen.sequence(p));
  return true;
}

}  // namespace

std::vector<int32_t> RoundUp(absl::Span<const int32_t> lengths, int limits) {
  // err[q][k] = min_j err[q-1][j] + sum of (limit - length) over [j, k), Eq. 15; lengths descend, so that a bucket's
  // limit is its first length. The best j does not fall as k grows: each half of the k's has its own range.
  const size_t n = lengths.size();
  if (static_cast<size_t>(limits) >= n) return {lengths.begin(), lengths.end()};
  std::vector<int64_t> sum = {0};
  for (const int32_t length : lengths) sum.push_back(sum.back() + length);
  const auto excess = [&](size_t begin, size_t end) {
    return static_cast<int64_t>(lengths[begin]) * static_cast<int64_t>(end - begin) - (sum[end] - sum[begin]);
  };
  std::vector<int64_t> before(n + 1, std::numeric_limits<int64_t>::max() / 2), error(n + 1);
  before[0] = 0;
  std::vector<std::vector<size_t>> from(static_cast<size_t>(limits), std::vector<size_t>(n + 1, 0));
  struct Range {
    size_t begin, end, low, high;  // ends [begin, end) have their best starts in [low, high]
  };
  for (auto& starts : from) {
    error = before;  // also with fewer limits
    for (size_t k = 0; k <= n; ++k) starts[k] = k;
    std::vector<Range> ranges = {{1, n + 1, 0, n}};
    while (!ranges.empty()) {
      const Range r = ranges.back();
      ranges.pop_back();
      if (r.begin >= r.end) continue;
      const size_t k = (r.begin + r.end) / 2;
      int64_t least = std::numeric_limits<int64_t>::max();
      size_t best = r.low;
      for (size_t j = r.low; j <= std::min(r.high, k - 1); ++j) {
        const int64_t all = before[j] + excess(j, k);
        if (all < least) least = all, best = j;
      }
      if (least < error[k]) error[k] = least, starts[k] = best;
      ranges.push_back({r.begin, k, r.low, best});
      ranges.push_back({k + 1, r.end, best, r.high});
    }
    before = error;
  }
  std::vector<int32_t> rounded(n);
  size_t end = n;
  for (auto starts = from.rbegin(); starts != from.rend() && end > 0; ++starts) {
    const size_t begin = (*starts)[end];
    for (size_t i = begin; i < end; ++i) rounded[i] = lengths[begin];
    end = begin;
  }
  return rounded;
}

Draft RoundedChunks(const PackingProblem& problem) {
  constexpr int kMore = 4;
  const int least = problem.least_batches();
  Draft best;
  for (int chunks = least; chunks <= problem.size() && (chunks <= least + kMore || best.groups.empty()); ++chunks) {
    const std::vector<int> borders = CutByTokens(problem, chunks);
    Draft whole;
    whole.group_of.assign(static_cast<size_t>(problem.size()), 0);
    whole.seconds = 0;
    bool fits = true;
    for (size_t c = 0; c + 1 < borders.size() && fits; ++c) {
      RoundedChunk part;
      fits = PackRounded(problem, borders[c], borders[c + 1], &part);
      if (!fits) break;
      const int first = static_cast<int>(whole.groups.size());
      for (auto group : part.draft.groups) {
        group.batch = static_cast<int>(c);
        whole.groups.push_back(group);
      }
      for (size_t i = 0; i < part.order.size(); ++i)
        whole.group_of[static_cast<size_t>(part.order[i])] = first + part.draft.group_of[i];
      whole.seconds += part.draft.seconds;
    }
    if (fits && whole.seconds < best.seconds) best = std::move(whole);
  }
  // From here on with true lengths.
  for (auto& group : best.groups) group.seconds = 0, group.tokens = 0;
  for (int p = 0; p < problem.size() && !best.groups.empty(); ++p) {
    auto& group = best.groups[static_cast<size_t>(best.group_of[static_cast<size_t>(p)])];
    group.seconds += problem.seconds(p)[group.level];
    group.tokens += problem.tokens(p);
  }
  MeasureDraft(problem, best);
  return best;
}

}  // namespace sequences

absl::StatusOr<StepPlan> PlanSortAndChunk(const SequencePlanRequest& request) {
  const sequences::PackingProblem problem(request);
  const sequences::Draft draft = sequences::RoundedChunks(problem);
  if (draft.groups.empty()) return absl::InternalError("sort_and_chunk: no number of chunks fits");
  return Finish(problem, draft);
}

}  // namespace shoal
