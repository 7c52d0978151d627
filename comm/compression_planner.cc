#include "comm/compression_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A layer's options that are worth considering: errors ascend, costs descend.
struct Choice {
  int option = 0;
  double cost = 0, error = 0;
};
using Choices = std::vector<Choice>;

absl::Status Check(const CompressionProblem& problem) {
  if (!(problem.budget >= 0))
    return absl::InvalidArgumentError(absl::StrCat("the error budget is ", problem.budget, "; it is 0 or more"));
  if (!problem.fallback.empty() && problem.fallback.size() != problem.layers.size())
    return absl::InvalidArgumentError(
        absl::StrCat("the fallback has ", problem.fallback.size(), " layers of ", problem.layers.size()));
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    for (size_t o = 0; o < problem.layers[l].size(); ++o) {
      const CompressionOption& option = problem.layers[l][o];
      if (option.cost >= 0 && option.error_squares >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("layer ", l, ", option ", o, ": cost ", option.cost,
                                                     " and squared error ", option.error_squares,
                                                     " must be numbers, and not negative"));
    }
  }
  return absl::OkStatus();
}

// Pareto-optimal options, by ascending error.
Choices ParetoOf(const std::vector<CompressionOption>& options) {
  Choices all;
  for (size_t o = 0; o < options.size(); ++o) {
    if (options[o].cost < kInfinity && options[o].error_squares < kInfinity)
      all.push_back({static_cast<int>(o), options[o].cost, options[o].error_squares});
  }
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) {
    return a.error != b.error ? a.error < b.error : a.cost < b.cost;
  });
  Choices kept;
  for (const Choice& c : all) {
    if (kept.empty() || c.cost < kept.back().cost) kept.push_back(c);
  }
  return kept;
}

// The lower convex hull of them.
Choices HullOf(const Choices& pareto) {
  Choices hull;
  for (const Choice& c : pareto) {
    while (hull.size() >= 2) {
      const Choice &a = hull[hull.size() - 2], &b = hull.back();
      if ((b.cost - a.cost) * (c.error - a.error) < (c.cost - a.cost) * (b.error - a.error)) break;
      hull.pop_back();
    }
    hull.push_back(c);
  }
  return hull;
}

struct Instance {
  std::vector<Choices> pareto;
  double budget = 0;

  // Of the plan of the least error: where every layer is exact, of nothing.
  double least_error() const {
    double sum = 0;
    for (const Choices& c : pareto) sum += c.front().error;
    return sum;
  }
};

absl::StatusOr<Instance> InstanceOf(const CompressionProblem& problem) {
  SHOAL_RETURN_IF_ERROR(Check(problem));
  Instance instance{{}, problem.budget};
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    instance.pareto.push_back(ParetoOf(problem.layers[l]));
    if (instance.pareto.back().empty())
      return absl::FailedPreconditionError(absl::StrCat("layer ", l, " has no option of finite cost and error"));
  }
  if (const double least = instance.least_error(); least > problem.budget)
    return absl::FailedPreconditionError(
        absl::StrCat("no plan is within the error budget of ", problem.budget, "; the least error is ", least));
  return instance;
}

CompressionPlan PlanOf(const CompressionProblem& problem, std::vector<int> option) {
  CompressionPlan plan;
  plan.option = std::move(option);
  for (size_t l = 0; l < plan.option.size(); ++l) {
    plan.cost += problem.layers[l][plan.option[l]].cost;
    plan.error_squares += problem.layers[l][plan.option[l]].error_squares;
  }
  return plan;
}

// Errors that are within the budget but for the rounding of a sum.
bool Within(double error, double budget) { return error <= budget * (1 + 1e-12); }

// What is left of the budget buys what it can, layer after layer, the largest saving first.
void SpendTheRest(const Instance& instance, std::vector<size_t>& at, double& left) {
  for (;;) {
    size_t best_layer = 0, best_to = 0;
    double best = 0;
    for (size_t l = 0; l < at.size(); ++l) {
      const Choices& c = instance.pareto[l];
      for (size_t to = at[l] + 1; to < c.size() && c[to].error - c[at[l]].error <= left; ++to) {
        if (const double saving = c[at[l]].cost - c[to].cost; saving > best) {
          best = saving;
          best_layer = l;
          best_to = to;
        }
      }
    }
    if (best <= 0) return;
    const Choices& c = instance.pareto[best_layer];
    left -= c[best_to].error - c[at[best_layer]].error;
    at[best_layer] = best_to;
  }
}

std::vector<int> OptionsAt(const Instance& instance, const std::vector<size_t>& at) {
  std::vector<int> option;
  for (size_t l = 0; l < at.size(); ++l) option.push_back(instance.pareto[l][at[l]].option);
  return option;
}

struct Greedy {
  std::vector<int> option;
  double bound = 0;
  double price = 0;  // cost per squared error where the budget ends: the multiplier of the relaxation
};
// Steps along all hulls, the most saving per error first; the fraction of the first step that does not fit makes the
// bound of the linear relaxation.
Greedy HullGreedy(const Instance& instance) {
  struct Step {
    double slope;
    size_t layer, to;
  };
  std::vector<Choices> hulls;
  std::vector<Step> steps;
  double cost = 0, left = instance.budget;
  for (size_t l = 0; l < instance.pareto.size(); ++l) {
    const Choices& hull = hulls.emplace_back(HullOf(instance.pareto[l]));
    cost += hull[0].cost;
    left -= hull[0].error;
    for (size_t to = 1; to < hull.size(); ++to)
      steps.push_back({(hull[to - 1].cost - hull[to].cost) / (hull[to].error - hull[to - 1].error), l, to});
  }
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.slope > b.slope; });
  std::vector<size_t> at(hulls.size());
  double bound = -1, price = 0;
  for (const Step& step : steps) {
    if (at[step.layer] + 1 != step.to) continue;  // an earlier step of the layer did not fit
    const Choices& hull = hulls[step.layer];
    const double error = hull[step.to].error - hull[step.to - 1].error,
                 saving = hull[step.to - 1].cost - hull[step.to].cost;
    if (error > left) {
      if (bound < 0) {
        bound = cost - saving * left / error;
        price = step.slope;
      }
      continue;
    }
    left -= error;
    cost -= saving;
    at[step.layer] = step.to;
  }
  Greedy greedy{{}, bound < 0 ? cost : bound, price};
  std::vector<size_t> in_pareto(at.size());
  for (size_t l = 0; l < at.size(); ++l) {
    const Choices& pareto = instance.pareto[l];
    while (pareto[in_pareto[l]].option != hulls[l][at[l]].option) ++in_pareto[l];
  }
  SpendTheRest(instance, in_pareto, left);
  greedy.option = OptionsAt(instance, in_pareto);
  return greedy;
}

// cost[b] and choice[b] of a layer's best option when it and the layers before it may spend b buckets.
void TakeBest(const Choices& choices, const std::vector<int>& weight, const std::vector<float>& before,
              std::vector<float>& cost, std::vector<uint8_t>& choice) {
  const auto n = static_cast<int>(before.size());
  std::fill(cost.begin(), cost.end(), std::numeric_limits<float>::infinity());
  for (size_t c = 0; c < choices.size(); ++c) {
    const int w = weight[c];
    const auto extra = static_cast<float>(choices[c].cost);
    const auto tag = static_cast<uint8_t>(c);
    const float* const from = before.data();
    float* const to = cost.data() + w;
    uint8_t* const tags = choice.data() + w;
    for (int b = 0; b < n - w; ++b) {
      const float total = from[b] + extra;
      const bool better = total < to[b];
      to[b] = better ? total : to[b];
      tags[b] = better ? tag : tags[b];
    }
  }
}

// Empty where rounding up leaves nothing within the budget.
std::vector<int> DynamicProgram(const Instance& instance, int buckets) {
  const size_t layers = instance.pareto.size();
  const double unit = instance.budget / buckets;
  const auto width = static_cast<size_t>(buckets) + 1;
  std::vector<float> before(width, 0.0F), cost(width);
  std::vector<std::vector<uint8_t>> chosen(layers, std::vector<uint8_t>(width));
  std::vector<std::vector<int>> weights(layers);
  for (size_t l = 0; l < layers; ++l) {
    const Choices& choices = instance.pareto[l];
    for (const Choice& c : choices) {
      const double w = c.error == 0 ? 0 : unit > 0 ? std::ceil(c.error / unit - 1e-9) : kInfinity;
      weights[l].push_back(w > buckets ? buckets + 1 : static_cast<int>(w));
    }
    Choices fit;
    std::vector<int> fit_weights;
    for (size_t c = 0; c < choices.size() && weights[l][c] <= buckets; ++c) {
      fit.push_back(choices[c]);
      fit_weights.push_back(weights[l][c]);
    }
    TakeBest(fit, fit_weights, before, cost, chosen[l]);
    before.swap(cost);
  }
  if (!(before[static_cast<size_t>(buckets)] < kInfinity)) return {};
  std::vector<size_t> at(layers);
  int b = buckets;
  double left = instance.budget;
  for (size_t l = layers; l-- > 0;) {
    at[l] = chosen[l][static_cast<size_t>(b)];
    b -= weights[l][at[l]];
    left -= instance.pareto[l][at[l]].error;
  }
  SpendTheRest(instance, at, left);
  return OptionsAt(instance, at);
}

// The optimum, by lists of undominated partial plans without those whose Lagrangian bound at `price` is no better than
// `incumbent`. Unless the lists grow beyond kMostStates altogether it is found: a plan, or nothing, where none is
// better.
struct Search {
  enum class End : uint8_t { kFound, kNoneIsBetter, kGivenUp } end = End::kGivenUp;
  std::vector<int> option = {};
};
Search ListProgram(const Instance& instance, double price, double incumbent) {
  constexpr size_t kMostStates = 30'000;
  struct State {
    double error, cost;
    int from;
    uint8_t choice;
  };
  const size_t layers = instance.pareto.size();
  std::vector<double> rest(layers + 1);  // bound of the layers from l on
  for (size_t l = layers; l-- > 0;) {
    double least = kInfinity;
    for (const Choice& c : instance.pareto[l]) least = std::min(least, c.cost + price * c.error);
    rest[l] = rest[l + 1] + least;
  }
  std::vector<std::vector<State>> lists(layers + 1);
  lists[0] = {{0, 0, -1, 0}};
  size_t made = 0;
  for (size_t l = 0; l < layers; ++l) {
    std::vector<State> all;
    for (size_t s = 0; s < lists[l].size(); ++s) {
      const State& state = lists[l][s];
      for (size_t c = 0; c < instance.pareto[l].size(); ++c) {
        const Choice& choice = instance.pareto[l][c];
        const double error = state.error + choice.error, cost = state.cost + choice.cost;
        if (error > instance.budget) break;
        if (cost + rest[l + 1] + price * (error - instance.budget) >= incumbent) continue;
        all.push_back({error, cost, static_cast<int>(s), static_cast<uint8_t>(c)});
      }
    }
    made += all.size();
    if (all.empty()) return {Search::End::kNoneIsBetter};
    if (made > kMostStates) return {Search::End::kGivenUp};
    std::stable_sort(all.begin(), all.end(), [](const State& a, const State& b) {
      return a.error != b.error ? a.error < b.error : a.cost < b.cost;
    });
    for (const State& state : all) {
      if (lists[l + 1].empty() || state.cost < lists[l + 1].back().cost) lists[l + 1].push_back(state);
    }
  }
  std::vector<size_t> at(layers);
  auto s = static_cast<int>(lists[layers].size()) - 1;  // costs descend
  for (size_t l = layers; l-- > 0;) {
    const State& state = lists[l + 1][static_cast<size_t>(s)];
    at[l] = state.choice;
    s = state.from;
  }
  return {Search::End::kFound, OptionsAt(instance, at)};
}

// The cheaper one, the less erroneous one of equals.
bool Better(const CompressionPlan& a, const CompressionPlan& b) {
  return a.cost != b.cost ? a.cost < b.cost : a.error_squares < b.error_squares;
}

bool Exact(const CompressionPlan& plan) { return plan.error_squares == 0; }

}  // namespace

absl::StatusOr<CompressionPlan> PlanByHullGreedy(const CompressionProblem& problem) {
  SHOAL_ASSIGN_OR_RETURN(const Instance instance, InstanceOf(problem));
  const Greedy greedy = HullGreedy(instance);
  CompressionPlan plan = PlanOf(problem, greedy.option);
  plan.bound = greedy.bound;
  return plan;
}

absl::StatusOr<CompressionPlan> PlanByDynamicProgram(const CompressionProblem& problem, int buckets) {
  SHOAL_ASSIGN_OR_RETURN(const Instance instance, InstanceOf(problem));
  std::vector<int> option = DynamicProgram(instance, buckets);
  if (option.empty())
    return absl::FailedPreconditionError("no plan is within the error budget once errors are rounded up");
  CompressionPlan plan = PlanOf(problem, std::move(option));
  plan.bound = HullGreedy(instance).bound;
  return plan;
}

absl::StatusOr<CompressionPlan> PlanCompression(const CompressionProblem& problem) {
  SHOAL_ASSIGN_OR_RETURN(const Instance instance, InstanceOf(problem));
  const Greedy greedy = HullGreedy(instance);
  CompressionPlan plan = PlanOf(problem, greedy.option);
  const auto consider = [&](std::vector<int> option) {
    if (CompressionPlan other = PlanOf(problem, std::move(option)); Better(other, plan)) plan = std::move(other);
  };
  Search search = ListProgram(instance, greedy.price, plan.cost);
  if (search.end == Search::End::kGivenUp) {
    constexpr int kBuckets = 5000;
    if (std::vector<int> option = DynamicProgram(instance, kBuckets); !option.empty()) consider(std::move(option));
    search = ListProgram(instance, greedy.price, plan.cost);
  }
  if (search.end == Search::End::kFound) consider(std::move(search.option));
  if (Exact(plan) && problem.budget == 0) plan.notes = "the error budget is 0";
  if (!problem.fallback.empty()) {
    CompressionPlan uniform = PlanOf(problem, problem.fallback);
    if (Within(uniform.error_squares, problem.budget) && Better(uniform, plan)) {
      plan = std::move(uniform);
      plan.notes = "the uniform default is as good";
    }
  }
  plan.bound = std::min(greedy.bound, plan.cost);
  return plan;
}

StepTimes TimesOf(const OverlapProblem& problem, absl::Span<const int> option) {
  const size_t buckets = problem.ready.size();
  std::vector<double> seconds = problem.bucket_seconds, stolen(buckets);
  for (size_t l = 0; l < option.size(); ++l) {
    const auto b = static_cast<size_t>(problem.bucket_of[l]);
    seconds[b] += problem.layers.layers[l][option[l]].cost;
    if (!problem.stolen.empty()) stolen[b] += problem.stolen[l][option[l]];
  }
  double end = 0, late = 0;
  for (size_t b = 0; b < buckets; ++b) {
    const double start = std::max(end, problem.ready[b] + late);
    // What travels once backward is over takes nothing from it.
    const double beside = problem.backward_end + late + stolen[b] - start;
    late += stolen[b] * (seconds[b] > 0 ? std::clamp(beside / seconds[b], 0.0, 1.0) : beside > 0 ? 1 : 0);
    end = start + seconds[b];
  }
  const double backward_end = problem.backward_end + late;
  return {backward_end, std::max(end, backward_end)};
}

double StepEnd(const OverlapProblem& problem, absl::Span<const int> option) { return TimesOf(problem, option).end; }

namespace {

// The least error of a plan whose last bucket is there at `end`, by suffixes: what buckets j and later take must fit
// after ready[j]. Work stolen from backward is left out here and counted by StepEnd.
class SuffixProgram {
 public:
  SuffixProgram(const OverlapProblem& problem, const Instance& instance) : p_(problem), instance_(instance) {
    of_bucket_.resize(problem.ready.size());
    for (size_t l = 0; l < problem.bucket_of.size(); ++l)
      of_bucket_[static_cast<size_t>(problem.bucket_of[l])].push_back(l);
  }

  // Empty where no plan is there in time within the budget.
  std::vector<int> LeastError(double end) {
    shifts_.clear();
    const double window = end - p_.ready[0];
    if (!(window > 0)) return {};
    const auto units = static_cast<int>(std::min<size_t>(16000, 2000 + 20 * instance_.pareto.size()));
    const double unit = window / units;
    const auto width = static_cast<size_t>(units) + 1;
    std::vector<float> best(width, kNone), next(width);
    best[0] = 0;
    order_.clear();
    chosen_.clear();
    weights_.clear();
    // Costs are rounded to the nearest unit, and what that makes of the end is judged by StepEnd.
    double carried = 0;
    const auto rounded = [&](double seconds) { return static_cast<int>(std::floor(seconds / unit + 0.5)); };
    for (size_t j = of_bucket_.size(); j-- > 0;) {
      carried += p_.bucket_seconds[j];
      const int fixed = rounded(carried);
      carried -= fixed * unit;
      Shift(best, fixed);
      shifts_.push_back(fixed);
      for (const size_t l : of_bucket_[j]) {
        const Choices& choices = instance_.pareto[l];
        std::vector<int> weights;
        for (const Choice& c : choices) weights.push_back(std::min(units + 1, rounded(c.cost)));
        auto& chosen = chosen_.emplace_back(width);
        std::fill(next.begin(), next.end(), kNone);
        for (size_t c = 0; c < choices.size(); ++c) {
          const int w = weights[c];
          const auto error = static_cast<float>(choices[c].error);
          const auto tag = static_cast<uint8_t>(c);
          for (int t = 0; t < static_cast<int>(width) - w; ++t) {
            const float total = best[static_cast<size_t>(t)] + error;
            const bool better = total < next[static_cast<size_t>(t + w)];
            next[static_cast<size_t>(t + w)] = better ? total : next[static_cast<size_t>(t + w)];
            chosen[static_cast<size_t>(t + w)] = better ? tag : chosen[static_cast<size_t>(t + w)];
          }
        }
        best.swap(next);
        order_.push_back({l, j});
        weights_.push_back(std::move(weights));
      }
      const auto most = static_cast<int64_t>(std::floor((end - p_.ready[j]) / unit + 1e-9));
      for (auto t = static_cast<size_t>(std::max<int64_t>(0, most + 1)); t < width; ++t) best[t] = kNone;
    }
    const auto least = static_cast<size_t>(std::min_element(best.begin(), best.end()) - best.begin());
    if (!(best[least] < kNone) || !Within(static_cast<double>(best[least]) * (1 - 1e-5), p_.layers.budget)) return {};
    return Trace(static_cast<int>(least));
  }

 private:
  static constexpr float kNone = std::numeric_limits<float>::infinity();
  struct At {
    size_t layer, bucket;
  };

  static void Shift(std::vector<float>& best, int by) {
    if (by <= 0) return;
    const size_t n = best.size(), s = std::min(n, static_cast<size_t>(by));
    std::copy_backward(best.begin(), best.end() - static_cast<std::ptrdiff_t>(s), best.end());
    std::fill(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(s), kNone);
  }

  std::vector<int> Trace(int t) {
    std::vector<int> option(instance_.pareto.size());
    size_t i = order_.size();
    for (size_t j = 0; j < of_bucket_.size(); ++j) {  // buckets came in descending order
      for (size_t k = 0; k < of_bucket_[j].size(); ++k) {
        --i;
        const uint8_t c = chosen_[i][static_cast<size_t>(t)];
        option[order_[i].layer] = instance_.pareto[order_[i].layer][c].option;
        t -= weights_[i][c];
      }
      t -= shifts_[shifts_.size() - 1 - j];
    }
    return option;
  }

  const OverlapProblem& p_;
  const Instance& instance_;
  std::vector<std::vector<size_t>> of_bucket_;
  std::vector<At> order_;
  std::vector<std::vector<uint8_t>> chosen_;
  std::vector<std::vector<int>> weights_;
  std::vector<int> shifts_;
};

absl::Status CheckOverlap(const OverlapProblem& p) {
  const size_t layers = p.layers.layers.size(), buckets = p.ready.size();
  if (p.bucket_of.size() != layers || p.bucket_seconds.size() != buckets ||
      (!p.stolen.empty() && p.stolen.size() != layers))
    return absl::InvalidArgumentError("layers and buckets of the overlap problem do not match");
  for (size_t b = 0; b < buckets; ++b) {
    if (!(p.ready[b] >= (b == 0 ? 0 : p.ready[b - 1])) || !(p.bucket_seconds[b] >= 0))
      return absl::InvalidArgumentError(absl::StrCat("bucket ", b, " is ready at ", p.ready[b], " s and costs ",
                                                     p.bucket_seconds[b], " s; buckets become ready in order"));
  }
  return absl::OkStatus();
}

// No plan's last bucket is there before it: for every suffix of buckets the relaxed cost of its layers, all others
// being exact for nothing.
double OverlapBound(const OverlapProblem& p, const Instance& instance) {
  double bound = p.backward_end, fixed = 0;
  Instance suffix{{}, instance.budget};
  for (size_t b = p.ready.size(); b-- > 0;) {
    fixed += p.bucket_seconds[b];
    for (size_t l = 0; l < instance.pareto.size(); ++l) {
      if (p.bucket_of[l] == static_cast<int>(b)) suffix.pareto.push_back(instance.pareto[l]);
    }
    bound = std::max(bound, p.ready[b] + fixed + HullGreedy(suffix).bound);
  }
  return bound;
}

}  // namespace

absl::StatusOr<OverlapPlan> PlanWithOverlap(const OverlapProblem& problem) {
  SHOAL_RETURN_IF_ERROR(CheckOverlap(problem));
  SHOAL_ASSIGN_OR_RETURN(const Instance instance, InstanceOf(problem.layers));
  const CompressionProblem& layers = problem.layers;
  OverlapPlan best;
  best.cost = kInfinity;
  const auto consider = [&](std::vector<int> option, absl::string_view notes) {
    if (option.empty() != layers.layers.empty()) return;
    OverlapPlan plan;
    static_cast<CompressionPlan&>(plan) = PlanOf(layers, std::move(option));
    if (!(plan.cost < kInfinity) || !Within(plan.error_squares, layers.budget)) return;
    plan.cost = StepEnd(problem, plan.option);
    plan.notes = std::string(notes);
    if (Better(plan, best)) best = std::move(plan);
  };
  SHOAL_ASSIGN_OR_RETURN(const CompressionPlan additive, PlanCompression(layers));
  consider(additive.option, "");
  if (!layers.fallback.empty()) consider(layers.fallback, "the uniform default is as good");
  size_t options = 0;
  for (const auto& layer : layers.layers) options = std::max(options, layer.size());
  for (size_t o = 0; o < options; ++o) {
    std::vector<int> uniform;
    for (const auto& layer : layers.layers)
      uniform.push_back(o < layer.size() && layer[o].cost < kInfinity ? static_cast<int>(o) : 0);
    consider(std::move(uniform), "one option for all layers is as good");
  }
  if (!problem.ready.empty()) {
    SuffixProgram program(problem, instance);
    const double bound = OverlapBound(problem, instance);
    double low = bound, high = best.cost;
    for (int round = 0; round < 12 && high > low * (1 + 1e-4); ++round) {
      const double middle = (low + high) / 2;
      std::vector<int> option = program.LeastError(middle);
      (option.empty() ? low : high) = middle;
      if (!option.empty()) consider(std::move(option), "");
    }
    const double latest = best.cost * (1 + problem.slack);
    if (std::vector<int> option = program.LeastError(latest); !option.empty() && problem.slack > 0) {
      OverlapPlan calm;
      static_cast<CompressionPlan&>(calm) = PlanOf(layers, std::move(option));
      calm.cost = StepEnd(problem, calm.option);
      if (calm.cost <= latest * (1 + problem.slack) && calm.error_squares < best.error_squares) best = std::move(calm);
    }
    best.bound = std::min(bound, best.cost);
  }
  best.exposed_seconds = TimesOf(problem, best.option).exposed();
  return best;
}

}  // namespace shoal
