// Tier 1 (research/flexsp.md §6.4): packs all micro-batches at once to deadlines, and searches for deadlines.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel/sequence_packing.h"

namespace shoal {
namespace sequences {
namespace {

// SplitMix64: the search's own draws, in order, cheap.
class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  size_t Below(size_t n) { return static_cast<size_t>(Uniform() * static_cast<double>(n)); }

 private:
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  uint64_t state_;
};

// Deadlines of the chunks of consecutive positions whose lower bounds have the least sum: where a good plan may lie,
// though it need not keep to the chunks. Breakpoints are about evenly spaced in tokens.
std::vector<double> ChunkDeadlines(const PackingProblem& problem) {
  constexpr int kBreakpoints = 64;
  constexpr double kFill = 0.97;  // of memory: packing never fills all of it
  const int64_t step = problem.tokens(0, problem.size()) / kBreakpoints;
  std::vector<int> points = {0};
  for (int p = 1; p < problem.size(); ++p) {
    if (problem.tokens(points.back(), p) >= step) points.push_back(p);
  }
  points.push_back(problem.size());
  const size_t n = points.size();
  std::vector<double> best(n, std::numeric_limits<double>::infinity()), load(n, 0);
  std::vector<size_t> from(n, 0);
  best[0] = 0;
  const double most = kFill * static_cast<double>(problem.capacity());
  for (size_t j = 1; j < n; ++j) {
    for (size_t i = 0; i < j; ++i) {
      if (i + 1 < j && static_cast<double>(problem.tokens(points[i], points[j])) > most) continue;
      const double chunk = std::max(problem.shortest(points[i]), problem.area(points[i], points[j]) / problem.ranks());
      if (best[i] + problem.fixed() + chunk >= best[j]) continue;
      best[j] = best[i] + problem.fixed() + chunk;
      load[j] = chunk;
      from[j] = i;
    }
  }
  std::vector<double> deadlines;
  for (size_t j = n - 1; j > 0; j = from[j]) deadlines.push_back(load[j]);
  return deadlines;
}

class Search {
 public:
  Search(const PackingProblem& problem, Packer& packer, Draft start, int64_t tries)
      : problem_(problem), packer_(packer), best_(std::move(start)), last_(packer.packs() + tries) {}

  const Draft& best() const { return best_; }
  bool over() const { return packer_.packs() >= last_; }

  // Looks for a plan better than the best with deadlines in these proportions, and these floors or one floor for all.
  // By value: they may be the best's own.
  void Scale(std::vector<double> shape, std::vector<int> floors) {
    double sum = 0;
    for (const double load : shape) sum += load;
    const double fixed = problem_.fixed() * static_cast<double>(shape.size());
    const double least = std::max(problem_.shortest(0) / *std::max_element(shape.begin(), shape.end()),
                                  problem_.area(0, problem_.size()) / problem_.ranks() / sum);
    constexpr int kBisect = 5;
    for (int floor = -1; floor < Floors() && !over(); ++floor) {
      if (floor >= 0) floors.assign(shape.size(), floor);
      double low = least, high = (best_.seconds * kWorthIt - fixed) / sum;
      if (high <= low || !Try(Scaled(shape, high), floors)) continue;
      for (int i = 0; i < kBisect && !over(); ++i) {
        const double middle = (low + high) / 2;
        if (Try(Scaled(shape, middle), floors))
          high = middle;
        else
          low = middle;
      }
    }
  }

  // Takes from one micro-batch's deadline, and often gives some of it to another or changes a floor; now and then one
  // micro-batch is left out.
  void Descend(Draws& draws) {
    constexpr double kLargest = 0.3, kGive = 0.6, kNewFloor = 0.4, kLeaveOut = 0.03;
    while (!over()) {
      std::vector<double> deadlines = best_.loads;
      std::vector<int> floors = best_.floors;
      const size_t i = draws.Below(deadlines.size());
      if (draws.Uniform() < kNewFloor)
        floors[draws.Below(floors.size())] = static_cast<int>(draws.Below(static_cast<size_t>(Floors())));
      if (deadlines.size() > 1 && draws.Uniform() < kLeaveOut) {
        const double budget = best_.seconds * kWorthIt - problem_.fixed() * static_cast<double>(deadlines.size() - 1);
        deadlines.erase(deadlines.begin() + static_cast<int64_t>(i));
        floors.erase(floors.begin() + static_cast<int64_t>(i));
        double sum = 0;
        for (const double d : deadlines) sum += d;
        Try(Scaled(deadlines, budget / sum), floors);
        continue;
      }
      const double share = draws.Uniform(), taken = deadlines[i] * kLargest * share * share * share;
      deadlines[i] -= taken;
      if (deadlines.size() > 1 && draws.Uniform() < kGive) {
        const size_t other = (i + 1 + draws.Below(deadlines.size() - 1)) % deadlines.size();
        deadlines[other] += taken * draws.Uniform();
      }
      Try(deadlines, floors);
    }
  }

 private:
  static constexpr double kWorthIt = 1 - 1e-5;

  int Floors() const { return std::min(4, problem_.levels()); }  // that the search tries: 1, 2, 4 and 8 ranks

  static std::vector<double> Scaled(std::vector<double> deadlines, double factor) {
    for (double& d : deadlines) d *= factor;
    return deadlines;
  }

  // Packs; true if it fits. Keeps the result if it is better than the best.
  bool Try(const std::vector<double>& deadlines, const std::vector<int>& floors) {
    double sum = 0;
    for (const double d : deadlines) sum += d;
    if (sum * problem_.ranks() < problem_.area(0, problem_.size())) {
      ++hopeless_;
      if (hopeless_ % 8 == 0) --last_;  // or a search whose every try is hopeless would never end
      return false;
    }
    if (!packer_.Pack(0, problem_.size(), deadlines, floors)) return false;
    if (packer_.seconds() < best_.seconds * kWorthIt) {
      best_ = packer_.Result();
      GrowGroups(problem_, best_);
    }
    return true;
  }

  const PackingProblem& problem_;
  Packer& packer_;
  Draft best_;
  int64_t last_, hopeless_ = 0;
};

}  // namespace
}  // namespace sequences

// A try costs about sequences x groups.
int SearchTries(size_t sequences, int ranks) {
  const double work = static_cast<double>(sequences) * ranks;
  return static_cast<int>(std::clamp(2000 * (512.0 * 64.0) / work, 40.0, 4000.0));
}

absl::StatusOr<StepPlan> PlanFlexSp(const SequencePlanRequest& request) {
  const sequences::PackingProblem problem(request);
  sequences::Packer packer(problem);
  std::vector<sequences::Draft> chunks;
  sequences::Draft start = sequences::Tier0(problem, packer, &chunks);
  sequences::Search search(problem, packer, std::move(start),
                           request.tries > 0 ? request.tries : SearchTries(request.lengths.size(), request.ranks));
  search.Scale(search.best().loads, search.best().floors);
  for (const auto& draft : chunks) search.Scale(draft.loads, draft.floors);
  const std::vector<double> deadlines = sequences::ChunkDeadlines(problem);
  search.Scale(deadlines, std::vector<int>(deadlines.size(), problem.levels() - 1));
  sequences::Draws draws(request.seed + 1);
  search.Descend(draws);
  return Finish(problem, search.best());
}

}  // namespace shoal
