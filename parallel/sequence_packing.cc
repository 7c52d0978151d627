#include "parallel/sequence_packing.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <set>
#include <utility>

namespace shoal::sequences {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRounding = 1 + 1e-12;  // a deadline that was a makespan can be met again

}  // namespace

PackingProblem::PackingProblem(const SequencePlanRequest& request)
    : model_(*request.model),
      ranks_(request.ranks),
      levels_(std::countr_zero(static_cast<unsigned>(model_.LargestDegree(ranks_))) + 1) {
  const auto& lengths = request.lengths;
  order_.resize(lengths.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });
  token_sum_ = {0};
  area_sum_ = {0};
  for (const int32_t k : order_) {
    const int64_t tokens = lengths[static_cast<size_t>(k)];
    int least = 0;
    while (least + 1 < levels_ && capacity(least) < tokens) ++least;
    double shortest = kInfinity, area = kInfinity;
    for (int l = 0; l < levels_; ++l) {
      const double seconds = model_.Seconds(tokens, 1 << l);
      seconds_.push_back(seconds);
      if (l < least) continue;
      shortest = std::min(shortest, seconds);
      area = std::min(area, seconds * (1 << l));
    }
    tokens_.push_back(tokens);
    token_sum_.push_back(token_sum_.back() + tokens);
    least_.push_back(least);
    shortest_.push_back(shortest);
    area_sum_.push_back(area_sum_.back() + area);
  }
  by_price_.resize(static_cast<size_t>(levels_));
  std::iota(by_price_.begin(), by_price_.end(), 0);
  const auto exchange = [&](int level) {
    if (level == 0 || model_.bandwidth.empty()) return 0.0;
    return 1 / model_.bandwidth[std::min(static_cast<size_t>(level - 1), model_.bandwidth.size() - 1)];
  };
  std::stable_sort(by_price_.begin(), by_price_.end(), [&](int a, int b) { return exchange(a) < exchange(b); });
  price_.resize(by_price_.size());
  for (size_t i = 0; i < by_price_.size(); ++i) price_[static_cast<size_t>(by_price_[i])] = static_cast<int>(i);
}

Packer::Packer(const PackingProblem& problem) : problem_(problem), open_(static_cast<size_t>(problem.levels())) {}

Packer::Place Packer::NewGroup(int position) const {
  Place best;
  const double* seconds = problem_.seconds(position);
  for (size_t b = 0; b < deadlines_.size(); ++b) {
    if (free_[b] == 0) continue;
    for (int l = std::max(floors_[b], problem_.least_level(position)); l < problem_.levels() && (1 << l) <= free_[b];
         ++l) {
      const double slack = deadlines_[b] - seconds[l];
      if (slack < 0) continue;
      if (best.level < 0 || problem_.price(l) < problem_.price(best.level) || (l == best.level && slack < best.slack))
        best = {l, static_cast<int>(b), slack};
      break;
    }
  }
  return best;
}

int Packer::BestFit(const Open& open, double seconds, int64_t tokens) const {
  int best = -1;
  double least = kInfinity;
  for (size_t i = 0; i < open.seconds.size(); ++i) {
    const double slack = open.seconds[i] - seconds;
    if (slack >= 0 && slack < least && open.tokens[i] >= tokens) {
      least = slack;
      best = static_cast<int>(i);
    }
  }
  return best;
}

bool Packer::Pack(int begin, int end, absl::Span<const double> deadlines, absl::Span<const int> floors) {
  ++packs_;
  for (Open& open : open_) {
    open.seconds.clear();
    open.tokens.clear();
    open.group.clear();
  }
  groups_.clear();
  group_of_.resize(static_cast<size_t>(end - begin));
  free_.assign(deadlines.size(), problem_.ranks());
  deadlines_.assign(deadlines.begin(), deadlines.end());
  for (double& d : deadlines_) d *= kRounding;
  floors_.assign(floors.begin(), floors.end());
  for (int p = begin; p < end; ++p) {
    const int64_t tokens = problem_.tokens(p);
    const double* seconds = problem_.seconds(p);
    const Place fresh = NewGroup(p);
    int level = -1, at = -1;
    for (const int l : problem_.by_price()) {
      if (fresh.level >= 0 && problem_.price(l) > problem_.price(fresh.level)) break;
      if (l < problem_.least_level(p)) continue;
      at = BestFit(open_[static_cast<size_t>(l)], seconds[l], tokens);
      if (at >= 0) {
        level = l;
        break;
      }
    }
    if (at < 0) {
      if (fresh.level < 0) return false;
      level = fresh.level;
      Open& open = open_[static_cast<size_t>(level)];
      at = static_cast<int>(open.group.size());
      open.seconds.push_back(deadlines_[static_cast<size_t>(fresh.batch)]);
      open.tokens.push_back(problem_.capacity(level));
      open.group.push_back(static_cast<int>(groups_.size()));
      groups_.push_back({level, fresh.batch, 0, 0});
      free_[static_cast<size_t>(fresh.batch)] -= 1 << level;
    }
    Open& open = open_[static_cast<size_t>(level)];
    const auto i = static_cast<size_t>(at);
    open.seconds[i] -= seconds[level];
    open.tokens[i] -= tokens;
    Draft::Group& group = groups_[static_cast<size_t>(open.group[i])];
    group.seconds += seconds[level];
    group.tokens += tokens;
    group_of_[static_cast<size_t>(p - begin)] = open.group[i];
  }
  Measure(deadlines.size());
  return true;
}

void Packer::Measure(size_t batches) {
  loads_.assign(batches, 0);
  for (const auto& group : groups_)
    loads_[static_cast<size_t>(group.batch)] = std::max(loads_[static_cast<size_t>(group.batch)], group.seconds);
  seconds_ = 0;
  for (const double load : loads_) seconds_ += load > 0 ? load + problem_.fixed() : 0;
}

Draft Packer::Result() const {
  Draft draft{groups_, group_of_, {}, {}, seconds_};
  std::vector<int> renamed(loads_.size(), -1);
  for (size_t b = 0; b < loads_.size(); ++b) {
    if (loads_[b] <= 0) continue;
    renamed[b] = static_cast<int>(draft.loads.size());
    draft.loads.push_back(loads_[b]);
    draft.floors.push_back(floors_[b]);
  }
  for (auto& group : draft.groups) group.batch = renamed[static_cast<size_t>(group.batch)];
  return draft;
}

void MeasureDraft(const PackingProblem& problem, Draft& draft) {
  size_t batches = 0;
  for (const auto& group : draft.groups) batches = std::max(batches, static_cast<size_t>(group.batch) + 1);
  draft.loads.assign(batches, 0);
  draft.floors.resize(batches, 0);
  for (const auto& group : draft.groups) {
    double& load = draft.loads[static_cast<size_t>(group.batch)];
    load = std::max(load, group.seconds);
  }
  draft.seconds = problem.fixed() * static_cast<double>(batches);
  for (const double load : draft.loads) draft.seconds += load;
}

std::vector<int> CutByTokens(const PackingProblem& problem, int chunks) {
  const int n = problem.size();
  const auto cut = [&](int64_t most) {
    std::vector<int> borders = {0};
    for (int p = 0; p < n; ++p) {
      if (problem.tokens(borders.back(), p + 1) > most && p > borders.back()) borders.push_back(p);
    }
    borders.push_back(n);
    return borders;
  };
  int64_t low = std::max(problem.tokens(0), (problem.tokens(0, n) + chunks - 1) / chunks), high = problem.tokens(0, n);
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int>(cut(middle).size()) - 1 <= chunks)
      high = middle;
    else
      low = middle + 1;
  }
  return cut(low);
}

bool PackChunk(const PackingProblem& problem, Packer& packer, int begin, int end, Draft* best) {
  if (problem.tokens(begin, end) > problem.capacity()) return false;
  const double least = std::max(problem.shortest(begin), problem.area(begin, end) / problem.ranks());
  double high = kInfinity;  // the shortest found
  const auto try_deadline = [&](double deadline, int floor) {
    if (!packer.Pack(begin, end, {deadline}, {floor})) return false;
    *best = packer.Result();
    high = best->loads[0];
    return true;
  };
  constexpr int kWiden = 16, kBisect = 8;
  constexpr double kWorthIt = 0.998;
  for (int floor = 0; floor < problem.levels(); ++floor) {
    double low = least;
    if (high == kInfinity) {
      // Slowly at first: the least feasible deadline is mostly near. A last resort on one group may be far off.
      double failed = least;
      for (int i = 0; i < kWiden && !try_deadline(low, floor); ++i) {
        failed = low;
        low *= i < kWiden / 2 ? 1.25 : 2.5;
      }
      if (high == kInfinity) continue;
      low = failed;
    } else if (!try_deadline(high * kWorthIt, floor)) {
      continue;
    }
    for (int i = 0; i < kBisect && low < high * kWorthIt; ++i) {
      const double middle = (low + high) / 2;
      if (!try_deadline(middle, floor)) low = middle;
    }
  }
  return high < kInfinity;
}

std::vector<Draft> SortedChunks(const PackingProblem& problem, Packer& packer) {
  constexpr int kMore = 4;
  const int least = problem.least_batches();
  std::vector<Draft> drafts;
  for (int chunks = least; chunks <= problem.size() && (chunks <= least + kMore || drafts.empty()); ++chunks) {
    const std::vector<int> borders = CutByTokens(problem, chunks);
    Draft whole;
    bool fits = true;
    for (size_t c = 0; c + 1 < borders.size() && fits; ++c) {
      Draft part;
      fits = PackChunk(problem, packer, borders[c], borders[c + 1], &part);
      const int first = static_cast<int>(whole.groups.size());
      for (auto group : part.groups) {
        group.batch = static_cast<int>(c);
        whole.groups.push_back(group);
      }
      whole.floors.insert(whole.floors.end(), part.floors.begin(), part.floors.end());
      for (const int g : part.group_of) whole.group_of.push_back(first + g);
    }
    if (!fits) continue;
    MeasureDraft(problem, whole);
    GrowGroups(problem, whole);
    drafts.push_back(std::move(whole));
  }
  return drafts;
}

Draft SingleDegree(const PackingProblem& problem, int level) {
  Draft draft;
  if (problem.capacity(level) < problem.tokens(0)) return draft;
  std::set<std::pair<int64_t, int>> room;  // tokens left, group
  draft.group_of.reserve(static_cast<size_t>(problem.size()));
  for (int p = 0; p < problem.size(); ++p) {
    const int64_t tokens = problem.tokens(p);
    const auto fit = room.lower_bound({tokens, 0});
    int64_t left = problem.capacity(level);
    auto g = static_cast<int>(draft.groups.size());
    if (fit != room.end()) {
      left = fit->first;
      g = fit->second;
      room.erase(fit);
    } else {
      draft.groups.push_back({level, 0, 0, 0});
    }
    room.insert({left - tokens, g});
    draft.groups[static_cast<size_t>(g)].seconds += problem.seconds(p)[level];
    draft.groups[static_cast<size_t>(g)].tokens += tokens;
    draft.group_of.push_back(g);
  }
  std::vector<int> order(draft.groups.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return draft.groups[static_cast<size_t>(a)].seconds > draft.groups[static_cast<size_t>(b)].seconds;
  });
  const int side_by_side = problem.ranks() >> level;
  for (size_t i = 0; i < order.size(); ++i)
    draft.groups[static_cast<size_t>(order[i])].batch = static_cast<int>(i) / side_by_side;
  draft.floors.assign((order.size() + static_cast<size_t>(side_by_side) - 1) / static_cast<size_t>(side_by_side),
                      level);
  MeasureDraft(problem, draft);
  return draft;
}

void GrowGroups(const PackingProblem& problem, Draft& draft) {
  std::vector<int> free(draft.loads.size(), problem.ranks());
  for (const auto& group : draft.groups) free[static_cast<size_t>(group.batch)] -= 1 << group.level;
  std::vector<std::vector<double>> seconds;  // [group][level], made when first needed
  for (size_t b = 0; b < free.size(); ++b) {
    while (true) {
      int longest = -1;
      for (size_t g = 0; g < draft.groups.size(); ++g) {
        const auto& group = draft.groups[g];
        if (group.batch != static_cast<int>(b)) continue;
        if (longest < 0 || group.seconds > draft.groups[static_cast<size_t>(longest)].seconds)
          longest = static_cast<int>(g);
      }
      auto& group = draft.groups[static_cast<size_t>(longest)];
      if ((1 << group.level) > free[b] || group.level + 1 >= problem.levels()) break;
      if (seconds.empty()) {
        seconds.assign(draft.groups.size(), std::vector<double>(static_cast<size_t>(problem.levels()), 0));
        for (int p = 0; p < problem.size(); ++p) {
          auto& sums = seconds[static_cast<size_t>(draft.group_of[static_cast<size_t>(p)])];
          for (size_t l = 0; l < sums.size(); ++l) sums[l] += problem.seconds(p)[l];
        }
      }
      const double grown = seconds[static_cast<size_t>(longest)][static_cast<size_t>(group.level) + 1];
      if (grown >= group.seconds) break;
      free[b] -= 1 << group.level;
      ++group.level;
      group.seconds = grown;
    }
  }
  MeasureDraft(problem, draft);
}

Draft Tier0(const PackingProblem& problem, Packer& packer, std::vector<Draft>* chunks) {
  std::vector<Draft> drafts = SortedChunks(problem, packer);
  Draft best = Greedy(problem);
  const auto take = [&best](const Draft& draft) {
    if (draft.seconds < best.seconds) best = draft;
  };
  for (int l = 0; l < problem.levels(); ++l) {
    Draft single = SingleDegree(problem, l);
    if (single.groups.empty()) continue;
    GrowGroups(problem, single);
    take(single);
  }
  for (const Draft& draft : drafts) take(draft);
  if (chunks != nullptr) *chunks = std::move(drafts);
  return best;
}

StepPlan Finish(const PackingProblem& problem, const Draft& draft) {
  std::vector<StepPlan::Group> groups(draft.groups.size());
  for (int p = 0; p < problem.size(); ++p)
    groups[static_cast<size_t>(draft.group_of[static_cast<size_t>(p)])].sequences.push_back(problem.sequence(p));
  std::vector<size_t> batches(draft.loads.size());
  std::iota(batches.begin(), batches.end(), size_t{0});
  std::stable_sort(batches.begin(), batches.end(), [&](size_t a, size_t b) { return draft.loads[a] > draft.loads[b]; });
  std::vector<size_t> place(batches.size());
  for (size_t i = 0; i < batches.size(); ++i) place[batches[i]] = i;
  StepPlan plan;
  plan.micro_batches.resize(batches.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].degree = 1 << draft.groups[g].level;
    std::sort(groups[g].sequences.begin(), groups[g].sequences.end());
    plan.micro_batches[place[static_cast<size_t>(draft.groups[g].batch)]].groups.push_back(std::move(groups[g]));
  }
  for (auto& batch : plan.micro_batches) {
    std::stable_sort(batch.groups.begin(), batch.groups.end(),
                     [](const auto& a, const auto& b) { return a.degree > b.degree; });
    int rank = 0;
    for (auto& group : batch.groups) {
      group.first_rank = rank;
      rank += group.degree;
    }
  }
  return plan;
}

}  // namespace shoal::sequences
