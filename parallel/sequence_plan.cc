#include "parallel/sequence_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr double kMebibyte = 1 << 20;

// The least degree that holds `tokens`, of any number of ranks.
int64_t DegreeFor(int64_t tokens, int64_t tokens_per_rank) {
  int64_t degree = 1;
  while (degree * tokens_per_rank < tokens) degree *= 2;
  return degree;
}

int64_t Tokens(const StepPlan::Group& group, absl::Span<const int32_t> lengths) {
  int64_t tokens = 0;
  for (const int32_t k : group.sequences) tokens += lengths[static_cast<size_t>(k)];
  return tokens;
}

// Rank-seconds of exchanges per token.
double ExchangeAreaPerToken(const SequenceCostModel& model, int degree) {
  return model.Seconds(1, degree) * degree - model.Seconds(1, 1);
}

std::string GroupsText(const StepPlan::MicroBatch& batch) {
  std::string text = "<";
  for (size_t i = 0; i < batch.groups.size();) {
    size_t end = i;
    while (end < batch.groups.size() && batch.groups[end].degree == batch.groups[i].degree) ++end;
    absl::StrAppend(&text, i > 0 ? "," : "", batch.groups[i].degree);
    if (end - i > 1) absl::StrAppend(&text, "x", end - i);
    i = end;
  }
  return text + ">";
}

}  // namespace

double SequenceCostModel::Seconds(int64_t tokens, int degree) const {
  const auto s = static_cast<double>(tokens);
  double seconds = quadratic * s * s + linear * s;
  if (degree > 1 && !bandwidth.empty()) {
    const auto k = static_cast<size_t>(std::countr_zero(static_cast<unsigned>(degree)) - 1);
    seconds += s * exchange_bytes_per_token / bandwidth[std::min(k, bandwidth.size() - 1)];
  }
  return seconds / degree;
}

absl::Status SequenceCostModel::Check() const {
  const std::pair<const char*, double> numbers[] = {{"quadratic", quadratic},
                                                    {"linear", linear},
                                                    {"fixed", fixed},
                                                    {"exchange_bytes_per_token", exchange_bytes_per_token}};
  for (const auto& [name, value] : numbers) {
    if (!std::isfinite(value) || value < 0)
      return absl::InvalidArgumentError(absl::StrCat("cost model: ", name, " is ", value, "; it is 0 or more"));
  }
  for (size_t k = 0; k < bandwidth.size(); ++k) {
    if (!std::isfinite(bandwidth[k]) || bandwidth[k] <= 0)
      return absl::InvalidArgumentError(
          absl::StrCat("cost model: bandwidth of degree ", 2 << k, " is ", bandwidth[k], "; it is above 0"));
  }
  if (quadratic <= 0 && linear <= 0) return absl::InvalidArgumentError("cost model: sequences take no time");
  if (tokens_per_rank < 1)
    return absl::InvalidArgumentError(
        absl::StrCat("cost model: tokens_per_rank is ", tokens_per_rank, "; it is at least 1"));
  if (max_degree < 1)
    return absl::InvalidArgumentError(absl::StrCat("cost model: max_degree is ", max_degree, "; it is at least 1"));
  return absl::OkStatus();
}

std::string StepPlan::Text() const {
  std::string text;
  for (size_t m = 0; m < micro_batches.size();) {
    const std::string groups = GroupsText(micro_batches[m]);
    size_t end = m + 1;
    while (end < micro_batches.size() && GroupsText(micro_batches[end]) == groups) ++end;
    absl::StrAppend(&text, m > 0 ? " " : "", groups);
    if (end - m > 1) absl::StrAppend(&text, "x", end - m);
    m = end;
  }
  return text;
}

uint64_t StepPlan::Hash() const {
  std::string bytes;
  const auto put = [&](size_t value) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift & 0xff));
  };
  put(1);  // version of this layout
  put(micro_batches.size());
  for (const MicroBatch& batch : micro_batches) {
    put(batch.groups.size());
    for (const Group& group : batch.groups) {
      put(static_cast<size_t>(group.degree));
      put(static_cast<size_t>(group.first_rank));
      put(group.sequences.size());
      for (const int32_t k : group.sequences) put(static_cast<size_t>(k));
    }
  }
  return NameHash(bytes);
}

absl::Status CheckLengths(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model) {
  if (ranks < 1) return absl::InvalidArgumentError(absl::StrCat("ranks is ", ranks, "; it is at least 1"));
  SHOAL_RETURN_IF_ERROR(model.Check());
  const int degree = model.LargestDegree(ranks);
  const int64_t capacity = degree * model.tokens_per_rank;
  for (size_t k = 0; k < lengths.size(); ++k) {
    const int64_t tokens = lengths[k];
    if (tokens < 1)
      return absl::InvalidArgumentError(
          absl::StrCat("sequence ", k, " has ", tokens, " tokens; lengths are at least 1"));
    if (tokens <= capacity) continue;
    const int64_t needed = DegreeFor(tokens, model.tokens_per_rank);
    const std::string remedy = needed <= model.max_degree
                                   ? absl::StrCat("on at least ", needed, " ranks")
                                   : absl::StrCat("but the limit is ", model.max_degree, " (", model.degree_limit, ")");
    const auto bytes = [&](int64_t n) { return HumanBytes(static_cast<double>(n) * model.bytes_per_token); };
    return absl::InvalidArgumentError(absl::StrCat(
        "sequence ", k, " has ", tokens, " tokens; the largest degree of ", ranks, ranks == 1 ? " rank, " : " ranks, ",
        degree, ", holds ", capacity, " (", model.tokens_per_rank, " on each rank). ",
        model.bytes_per_token > 0
            ? absl::StrCat("Its activations need ", bytes(tokens), " and the group has ", bytes(capacity), ". ")
            : "",
        "Degree ", needed, " would hold it, ", remedy, "; or ", (tokens + degree - 1) / degree,
        " tokens on each rank (recomputing more), or lengths of at most ", capacity));
  }
  return absl::OkStatus();
}

absl::Status ValidatePlan(const StepPlan& plan, absl::Span<const int32_t> lengths, int ranks,
                          const SequenceCostModel& model) {
  std::vector<int> seen(lengths.size(), 0);
  for (size_t m = 0; m < plan.micro_batches.size(); ++m) {
    const auto& groups = plan.micro_batches[m].groups;
    if (groups.empty()) return absl::FailedPreconditionError(absl::StrCat("micro-batch ", m, " has no groups"));
    int64_t next = 0;  // the first rank that no group has yet
    for (size_t g = 0; g < groups.size(); ++g) {
      const auto& group = groups[g];
      const auto wrong = [&](const auto&... what) {
        return absl::FailedPreconditionError(absl::StrCat("micro-batch ", m, ", group ", g, " of degree ", group.degree,
                                                          " at rank ", group.first_rank, " ", what...));
      };
      if (group.degree < 1 || !std::has_single_bit(static_cast<unsigned>(group.degree)))
        return wrong("has a degree that is no power of two");
      if (group.degree > model.max_degree) return wrong("exceeds the highest degree, ", model.max_degree);
      if (g > 0 && group.degree > groups[g - 1].degree)
        return wrong("follows one of degree ", groups[g - 1].degree, "; degrees descend");
      if (group.first_rank < 0 || group.first_rank % group.degree != 0) return wrong("is not aligned");
      if (group.first_rank != next) return wrong("should begin at rank ", next, ", where the one before it ends");
      next += group.degree;
      if (next > ranks) return wrong("ends beyond the last of ", ranks, " ranks");
      if (group.sequences.empty()) return wrong("has no sequences");
      for (const int32_t k : group.sequences) {
        if (k < 0 || static_cast<size_t>(k) >= lengths.size())
          return wrong("has sequence ", k, "; the batch has ", lengths.size());
        if (seen[static_cast<size_t>(k)]++ > 0) return wrong("has sequence ", k, ", which is in the plan already");
      }
      if (const int64_t tokens = Tokens(group, lengths), most = group.degree * model.tokens_per_rank; tokens > most)
        return wrong("has ", tokens, " tokens and holds ", most);
    }
  }
  const auto missing = std::find(seen.begin(), seen.end(), 0);
  if (missing != seen.end())
    return absl::FailedPreconditionError(absl::StrCat("sequence ", missing - seen.begin(), " is in no group"));
  return absl::OkStatus();
}

double GroupSeconds(const StepPlan::Group& group, absl::Span<const int32_t> lengths, const SequenceCostModel& model) {
  double seconds = 0;
  for (const int32_t k : group.sequences) seconds += model.Seconds(lengths[static_cast<size_t>(k)], group.degree);
  return seconds;
}

double MicroBatchSeconds(const StepPlan::MicroBatch& batch, absl::Span<const int32_t> lengths,
                         const SequenceCostModel& model) {
  double longest = 0;
  for (const auto& group : batch.groups) longest = std::max(longest, GroupSeconds(group, lengths, model));
  return model.fixed + longest;
}

double PlanCost(const StepPlan& plan, absl::Span<const int32_t> lengths, const SequenceCostModel& model) {
  double seconds = 0;
  for (const auto& batch : plan.micro_batches) seconds += MicroBatchSeconds(batch, lengths, model);
  return seconds;
}

StepTerms TermsOf(const StepPlan& plan, absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model) {
  StepTerms terms;
  for (const auto& batch : plan.micro_batches) {
    for (const auto& group : batch.groups) {
      for (const int32_t k : group.sequences) {
        const double s = lengths[static_cast<size_t>(k)];
        terms.quadratic += model.quadratic * s * s / ranks;
        terms.linear += model.linear * s / ranks;
        terms.exchange += ExchangeAreaPerToken(model, group.degree) * s / ranks;
      }
    }
    terms.fixed += model.fixed;
  }
  terms.idle = std::max(0.0, PlanCost(plan, lengths, model) - terms.sum());  // no negative rounding
  return terms;
}

namespace {

// Of a sequence, over degrees that hold it: what bounds need.
struct Least {
  double seconds = std::numeric_limits<double>::infinity();   // of any degree
  double area = std::numeric_limits<double>::infinity();      // rank-seconds
  double exchange = std::numeric_limits<double>::infinity();  // of it, per token
};

Least LeastOf(int64_t tokens, int largest, const SequenceCostModel& model) {
  Least least;
  for (int degree = 1; degree <= largest; degree *= 2) {
    if (degree * model.tokens_per_rank < tokens) continue;
    const double seconds = model.Seconds(tokens, degree);
    least.seconds = std::min(least.seconds, seconds);
    least.area = std::min(least.area, seconds * degree);
    least.exchange = std::min(least.exchange, ExchangeAreaPerToken(model, degree));
  }
  return least;
}

// Tokens of sequences at the same least price of exchange.
using TokensByExchange = std::map<double, double>;

// The least area added when `tokens` of these, those that pay most anyway first, pay `exchange` per token.
double AddedArea(const TokensByExchange& others, double tokens, double exchange) {
  double added = 0;
  for (auto at = others.rbegin(); at != others.rend() && tokens > 0; ++at) {
    const double here = std::min(tokens, at->second);
    added += here * std::max(0.0, exchange - at->first);
    tokens -= here;
  }
  return added;
}

// The most area that fits in memory for `tokens`. Densities: of each sequence area per token, and tokens; descending.
double MostArea(const std::vector<std::pair<double, double>>& densities, double tokens) {
  double area = 0;
  for (const auto& [density, here] : densities) {
    if (tokens <= 0) break;
    area += density * std::min(here, tokens);
    tokens -= here;
  }
  return area;
}

}  // namespace

StepBounds BoundStep(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model) {
  if (lengths.empty()) return {};
  const int largest = model.LargestDegree(ranks);
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  double area = 0;
  int64_t tokens = 0;
  TokensByExchange others;
  std::vector<std::pair<double, double>> densities;
  for (const int32_t length : lengths) {
    const Least least = LeastOf(length, largest, model);
    area += least.area;
    tokens += length;
    others[least.exchange] += length;
    densities.emplace_back(least.area / length, length);
  }
  const Least of_longest = LeastOf(longest, largest, model);
  others[of_longest.exchange] -= static_cast<double>(longest);
  densities.erase(densities.begin() + (std::max_element(lengths.begin(), lengths.end()) - lengths.begin()));
  std::sort(densities.rbegin(), densities.rend());
  const int64_t capacity = ranks * model.tokens_per_rank, batches = (tokens + capacity - 1) / capacity;
  const double fixed = model.fixed * static_cast<double>(batches);

  double crowding = std::numeric_limits<double>::infinity();
  for (int degree = 1; degree <= largest; degree *= 2) {
    if (degree * model.tokens_per_rank < longest) continue;
    const double exchange = ExchangeAreaPerToken(model, degree);
    const double own = (exchange - of_longest.exchange) * static_cast<double>(longest);
    // While the longest runs, the other ranks can do what their memory holds and no more.
    const double beside = MostArea(densities, static_cast<double>((ranks - degree) * model.tokens_per_rank));
    const double alone = model.Seconds(longest, degree) + std::max(0.0, area - of_longest.area - beside) / ranks;
    for (int64_t m = batches;; ++m) {
      const auto crowded = static_cast<double>(tokens - longest - (m * ranks - degree) * model.tokens_per_rank);
      const double all = area + own + AddedArea(others, crowded, exchange);
      crowding = std::min(crowding, model.fixed * static_cast<double>(m) + std::max(all / ranks, alone));
      if (crowded <= 0) break;
    }
  }
  // Less by more than summing in another order can make of it: a bound must hold to the last bit.
  constexpr double kRounding = 1 - 1e-10;
  return {kRounding * (area / ranks + fixed), kRounding * (of_longest.seconds + fixed), kRounding * crowding};
}

absl::StatusOr<SequenceCostModel> PublishedCostModel(absl::string_view name, int ranks, int64_t longest) {
  struct Row {
    const char* name;
    double quadratic, linear, fixed;  // milliseconds
    double activation;                // MiB per token
    int layers, width;
  };
  static constexpr Row kRows[] = {{"7b", 5.128e-6, 0.18396, 629.4, 4.480, 32, 4096},
                                  {"13b", 9.285e-6, 0.30602, 1132.6, 4.220, 40, 5120},
                                  {"30b", 1.543e-5, 0.80357, 2789.4, 3.417, 60, 6656}};
  constexpr double kBudget = 28 * 1024 * kMebibyte, kVocabulary = 50257;
  const Row* row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& r) { return r.name == name; });
  if (row == std::end(kRows)) {
    const std::string near = DidYouMean(name, {"7b", "13b", "30b"});
    return absl::InvalidArgumentError(absl::StrCat("no published constants of model '", name, "'",
                                                   near.empty() ? "" : absl::StrCat("; did you mean '", near, "'"),
                                                   "; there are 7b, 13b and 30b"));
  }
  const double width = row->width;
  const double parameters =
      12.0 * row->layers * width * width + (2 * kVocabulary + static_cast<double>(longest)) * width;
  const double states = 16 * parameters / ranks;
  SequenceCostModel model;
  model.quadratic = row->quadratic * 1e-3;
  model.linear = row->linear * 1e-3;
  model.fixed = row->fixed * 1e-3;
  // q, k, v and the output, forward and backward, two bytes each.
  model.exchange_bytes_per_token = 4.0 * 2 * row->layers * width * 2;
  for (const double rate : {119.5, 104.1, 96.5, 10.33, 5.94, 4.87}) model.bandwidth.push_back(rate * 1000 * kMebibyte);
  model.max_degree = 64;  // heads
  const double tokens = (kBudget - states) / (row->activation * kMebibyte);
  if (tokens < 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "model states of %s on %d ranks are %s a rank and its memory is %s; take at least %d ranks", name, ranks,
        HumanBytes(states), HumanBytes(kBudget), static_cast<int>(std::ceil(16 * parameters / kBudget)) + 1));
  }
  model.tokens_per_rank = static_cast<int64_t>(tokens);
  model.bytes_per_token = row->activation * kMebibyte;
  model.longest = std::min(longest, model.LargestDegree(ranks) * model.tokens_per_rank);
  return model;
}

}  // namespace shoal
