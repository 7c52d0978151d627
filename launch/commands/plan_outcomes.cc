#include "launch/commands/plan_outcomes.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "parallel/sequence_lp.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int kLongSearch = 10;

PlanOutcome PlanAll(const SequencePlanner& planner, const LengthBatches& read, int ranks, int degree,
                    const SequenceCostModel& model) {
  PlanOutcome outcome{planner.name, &planner, {}, {}, {}};
  for (const auto& lengths : read.batches) {
    const double start = SteadySeconds();
    auto step = PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model, .degree = degree}, planner.name);
    if (!step.ok()) {
      outcome.status = step.status();
      return outcome;
    }
    outcome.plan_seconds.push_back(SteadySeconds() - start);
    outcome.steps.push_back(*std::move(step));
  }
  return outcome;
}

// Of every batch the better plan of the planner's own and of one that it searched longer for.
absl::StatusOr<PlanOutcome> SearchLonger(const PlanOutcome& own, const LengthBatches& read, int ranks,
                                         const SequenceCostModel& model) {
  PlanOutcome outcome{absl::StrCat(own.name, "_x", kLongSearch), own.planner, {}, {}, {}};
  for (size_t i = 0; i < read.batches.size(); ++i) {
    const auto& lengths = read.batches[i];
    const double start = SteadySeconds();
    SHOAL_ASSIGN_OR_RETURN(PlannedStep step, PlanSequences({.lengths = lengths,
                                                            .ranks = ranks,
                                                            .model = &model,
                                                            .tries = kLongSearch * SearchTries(lengths.size(), ranks)},
                                                           own.planner->name));
    outcome.plan_seconds.push_back(SteadySeconds() - start);
    outcome.steps.push_back(step.seconds < own.steps[i].seconds ? std::move(step) : own.steps[i]);
  }
  return outcome;
}

// The error of the first batch that does not pass, with the line of the sequence where a file has lines.
absl::Status CheckBatches(const std::string& file, const LengthBatches& read, int ranks,
                          const SequenceCostModel& model) {
  size_t before = 0;
  for (const auto& lengths : read.batches) {
    const absl::Status all = CheckLengths(lengths, ranks, model);
    if (!all.ok()) {
      for (size_t k = 0; k < lengths.size() && !read.lines.empty(); ++k) {
        const absl::Status one = CheckLengths(absl::MakeConstSpan(&lengths[k], 1), ranks, model);
        if (!one.ok()) return Annotate(all, absl::StrCat(file, ":", read.lines[before + k]));
      }
      return Annotate(all, file);
    }
    before += lengths.size();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<PlanOutcome>> ComparePlanners(const PlannerChoice& choice, const std::string& file,
                                                         const LengthBatches& read, int ranks,
                                                         const SequenceCostModel& model) {
  if (!choice.name.empty())  // an unknown one is an error that names those there are
    SHOAL_RETURN_IF_ERROR(PlanSequences({.model = &model}, choice.name).status());
  if (choice.degree > 0 && !choice.name.empty() && choice.name != "static")
    return absl::InvalidArgumentError(
        absl::StrCat("--degree is of planner static; planner ", choice.name, " chooses degrees itself: remove one"));
  if (choice.degree > 0 && !std::has_single_bit(static_cast<unsigned>(choice.degree)))
    return absl::InvalidArgumentError(
        absl::StrCat("--degree is ", choice.degree, "; degrees are powers of two: 1, 2, 4, ..."));
  SHOAL_RETURN_IF_ERROR(CheckBatches(file, read, ranks, model));
  std::vector<PlanOutcome> outcomes;
  const auto table = SequencePlanners();
  for (const SequencePlanner& row : table) {
    if (choice.name.empty() || &row == table.data() || row.name == choice.name)
      outcomes.push_back(PlanAll(row, read, ranks, choice.degree, model));
  }
  SHOAL_RETURN_IF_ERROR(outcomes.front().status);
  if (choice.bounds == PlanBounds::kSearch) {
    SHOAL_ASSIGN_OR_RETURN(PlanOutcome longer, SearchLonger(outcomes.front(), read, ranks, model));
    outcomes.insert(outcomes.begin() + 1, std::move(longer));
  }
  return outcomes;
}

double LpBounds::Mean() const {
  return seconds.empty() ? 0
                         : std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
}

absl::StatusOr<LpBounds> AddLpBounds(const LengthBatches& read, int ranks, const SequenceCostModel& model,
                                     std::vector<PlanOutcome>& outcomes) {
  LpBounds bounds;
  for (size_t i = 0; i < read.batches.size(); ++i) {
    std::vector<const StepPlan*> plans;
    for (const PlanOutcome& o : outcomes) {
      if (i < o.steps.size()) plans.push_back(&o.steps[i].plan);
    }
    const double start = SteadySeconds();
    const absl::StatusOr<double> bound = LpBound(read.batches[i], ranks, model, plans);
    bounds.seconds.push_back(SteadySeconds() - start);
    if (absl::IsUnimplemented(bound.status())) return bound.status();
    if (!bound.ok()) {
      bounds.errors[i] = std::string(bound.status().message());
      continue;
    }
    for (PlanOutcome& o : outcomes) {
      if (i < o.steps.size()) o.steps[i].bounds.lp = *bound;
    }
  }
  return bounds;
}

std::string ErrorsText(const LpBounds& bounds) {
  if (bounds.errors.empty()) return "";
  std::string text = absl::StrFormat("gap unknown of %d of %d batches:", bounds.errors.size(), bounds.seconds.size());
  for (const auto& [batch, why] : bounds.errors) absl::StrAppend(&text, " batch ", batch, ": ", why, ";");
  text.back() = '\n';
  return text;
}

std::string LengthsText(const LengthBatches& read) {
  double tokens = 0, sequences = 0;
  int32_t longest = 0;
  for (const auto& batch : read.batches) {
    tokens += std::accumulate(batch.begin(), batch.end(), 0.0);
    sequences += static_cast<double>(batch.size());
    longest = std::max(longest, *std::max_element(batch.begin(), batch.end()));
  }
  std::string text = absl::StrFormat("%s; mean %.0f tokens, longest %d", read.source, tokens / sequences, longest);
  if (read.left_out > 0) absl::StrAppendFormat(&text, "; %d longer ones are left out", read.left_out);
  return text + "\n";
}

nlohmann::json OutcomesJson(const std::vector<PlanOutcome>& outcomes, const LpBounds& bounds) {
  nlohmann::json planners = nlohmann::json::object();
  for (const PlanOutcome& o : outcomes) {
    nlohmann::json row;
    if (!o.status.ok()) row["does_not_apply"] = std::string(o.status.message());
    for (size_t i = 0; i < o.steps.size(); ++i) {
      row["seconds"].push_back(o.steps[i].seconds);
      row["bound"].push_back(o.steps[i].bound());
      row["gap"].push_back(bounds.errors.contains(i) ? nlohmann::json() : nlohmann::json(o.steps[i].gap()));
      row["quick_gap"].push_back(1 - o.steps[i].bounds.quick() / o.steps[i].seconds);
      row["area_gap"].push_back(1 - o.steps[i].bounds.area / o.steps[i].seconds);  // with LB1 alone
      row["plan_seconds"].push_back(o.plan_seconds[i]);
      row["micro_batches"].push_back(o.steps[i].plan.micro_batches.size());
      row["plan"].push_back(o.steps[i].plan.Text());
      row["hash"].push_back(absl::StrFormat("%016x", o.steps[i].plan.Hash()));
    }
    planners[o.name] = row;
  }
  return planners;
}

}  // namespace shoal
