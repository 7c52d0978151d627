#include "parallel/compression_control.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr double kFloat = sizeof(float);
// What is followed of errors, step by step.
constexpr double kFollow = 0.1;                               // weight of a step
constexpr double kUnder = 0.49, kOver = 1.1, kFarOver = 4.0;  // relative to the budget's square
constexpr int64_t kOverSteps = 20, kFarOverSteps = 3;
constexpr double kTightest = 0.1;
constexpr double kWorthIt = 0.02;

json ToJson(const LayerPlan& plan, const GradientCodecs& codecs) {
  json names = json::array();
  for (const int o : plan.option) names.push_back(std::string(codecs.options[o]->name()));
  return {{"id", plan.id},
          {"first_step", plan.first_step},
          {"codecs", names},
          {"relative_error", plan.relative_error},
          {"relative_budget", plan.relative_budget},
          {"coded_budget", plan.coded_budget},
          {"cost", plan.cost},
          {"bound", plan.bound},
          {"uniform_cost", plan.uniform_cost},
          {"exposed_seconds", plan.exposed_seconds},
          {"bytes", plan.bytes},
          {"uniform_bytes", plan.uniform_bytes},
          {"plain_bytes", plan.plain_bytes},
          {"notes", plan.notes}};
}

absl::StatusOr<LayerPlan> FromJson(const json& j, const GradientCodecs& codecs) {
  LayerPlan plan;
  try {
    plan.id = j.at("id").get<int64_t>();
    plan.first_step = j.at("first_step").get<int64_t>();
    for (const json& name : j.at("codecs")) {
      const auto at = std::find_if(codecs.options.begin(), codecs.options.end(),
                                   [&](const Codec* c) { return c->name() == name.get<std::string>(); });
      if (at == codecs.options.end())
        return absl::NotFoundError(
            absl::StrCat("a plan uses ", name.get<std::string>(), ", which is not among comm.compression.options"));
      plan.option.push_back(static_cast<int>(at - codecs.options.begin()));
    }
    if (plan.option.size() != codecs.layers.size())
      return absl::NotFoundError(
          absl::StrCat("a plan is of ", plan.option.size(), " layers, this model has ", codecs.layers.size()));
    plan.relative_error = j.at("relative_error").get<double>();
    plan.relative_budget = j.at("relative_budget").get<double>();
    plan.coded_budget = j.at("coded_budget").get<double>();
    plan.cost = j.at("cost").get<double>();
    plan.bound = j.at("bound").get<double>();
    plan.uniform_cost = j.at("uniform_cost").get<double>();
    plan.exposed_seconds = j.at("exposed_seconds").get<double>();
    plan.bytes = j.at("bytes").get<double>();
    plan.uniform_bytes = j.at("uniform_bytes").get<double>();
    plan.plain_bytes = j.at("plain_bytes").get<double>();
    plan.notes = j.at("notes").get<std::string>();
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("a compression plan is damaged: ", e.what()));
  }
  return plan;
}

double SumOfSquares(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

// What waits of codes that leave a share of the squares they are given, relative to the gradients.
double Waiting(double share) { return share < 1 ? share / (1 - share) : std::numeric_limits<double>::infinity(); }

std::string ExposedText(const LayerPlan& plan) {
  return plan.exposed_seconds >= 0 ? absl::StrFormat(", %.0f ms exposed predicted", plan.exposed_seconds * 1e3) : "";
}

// "12 q3, 9 bf16": how many layers take what.
std::string CountText(const LayerPlan& plan, const GradientCodecs& codecs) {
  std::map<int, int> count;
  for (const int o : plan.option) ++count[o];
  std::vector<std::string> parts;
  for (const auto& [option, n] : count) parts.push_back(absl::StrCat(n, " ", codecs.options[option]->name()));
  return absl::StrJoin(parts, ", ");
}

}  // namespace

CompressionControl::CompressionControl(const config::CompressionConfig& config, const std::vector<const Param*>& params,
                                       const GradientCodecs& codecs, DataParallel& dp, Mesh& mesh, int zero_stage,
                                       ExchangeCosts costs)
    : config_(config),
      params_(params),
      codecs_(codecs),
      dp_(dp),
      mesh_(mesh),
      zero_stage_(zero_stage),
      costs_(std::move(costs)),
      layer_of_(params.size(), -1) {
  for (size_t l = 0; l < codecs.layers.size(); ++l) layer_of_[codecs.layers[l]] = static_cast<int>(l);
  plan_.option.assign(codecs.layers.size(), 0);
  mine_.rows.assign(codecs.layers.size() * width(), 0);
  observe_from_ = config.warmup_steps() - config.lead_steps() - config.table_steps() + 1;
}

CompressionControl::~CompressionControl() {
  if (planning_.valid()) planning_.wait();
}

absl::StatusOr<std::string> CompressionControl::BeginStep(int64_t step) {
  std::string news = std::exchange(news_, "");
  // A run that is resumed with other options, or that had no plans before, has passed the steps it would measure.
  if (activate_at_ < 0 && step >= observe_from_ + config_.table_steps()) observe_from_ = step;
  if (step == activate_at_) {
    activate_at_ = -1;
    std::string mine = PendingText();
    if (json j = json::parse(mine, nullptr, false); j.is_object() && j.contains("stays") && times_steps_ > 0) {
      // Its exposed time, foretold from the steps before it, is now known from its own.
      j["exposed_seconds"] = times_sum_.waited / static_cast<double>(times_steps_);
      mine = j.dump();
    }
    SHOAL_ASSIGN_OR_RETURN(
        const std::string text,
        BroadcastString(mesh_.control(), std::move(mine), 0, {.tag = absl::StrCat("compression plan of step ", step)}));
    pending_.clear();
    const json j = json::parse(text, nullptr, false);
    if (j.is_object() && j.contains("stays")) {
      plan_.exposed_seconds = j.value("exposed_seconds", plan_.exposed_seconds);
      news = absl::StrCat("compression plan ", plan_.id, " stays: ", j.value("stays", ""), ExposedText(plan_));
    } else if (j.is_object()) {
      SHOAL_ASSIGN_OR_RETURN(plan_, FromJson(j, codecs_));
      SHOAL_RETURN_IF_ERROR(
          CheckEqualOnAllRanks(mesh_.control(), "compression plan", PlanMark(), {.tag = "compression plan's check"}));
      PutIntoForce(step);
      // A new plan is looked at again when its own effect is known, on residuals and on times.
      if (plan_.id == 1 || TimeMode()) observe_from_ = std::min(observe_from_, step + config_.lead_steps());
      news = absl::StrFormat(
          "compression plan %d: %s; %s for %s of gradients (%s for all: %s), relative error %.4f of %.4f allowed, %.2f "
          "%% from the bound%s%s",
          plan_.id, CountText(plan_, codecs_), HumanBytes(plan_.bytes), HumanBytes(plan_.plain_bytes),
          codecs_.options[codecs_.uniform]->name(), HumanBytes(plan_.uniform_bytes), plan_.relative_error,
          plan_.relative_budget, plan_.cost > 0 ? 100 * (1 - plan_.bound / plan_.cost) : 0, ExposedText(plan_),
          plan_.notes.empty() ? "" : absl::StrCat(" (", plan_.notes, ")"));
    } else {
      news = absl::StrCat("compression plan ", plan_.id, " stays: ", text);
    }
  }
  turn_ = nullptr;
  if (Observes(step)) {
    step_rows_.assign(mine_.rows.size(), 0);
    SetCodecs(Purpose::kMeasure);
    dp_.Observe([this](int param, const CodecInput& input) {
      const int layer = layer_of_[param];
      if (layer < 0) return;
      AddRow(layer, input);
    });
  } else if (!turns_.empty()) {
    if (plan_.id > 0 && step % 2 == 1) turn_ = turns_[static_cast<size_t>(step / 2) % turns_.size()];
    SetCodecs(Purpose::kTrain);
  }
  return news;
}

void CompressionControl::AddRow(int layer, const CodecInput& input) {
  double* row = step_rows_.data() + static_cast<size_t>(layer) * width();
  const size_t options = codecs_.options.size();
  std::vector<double> errors(options);
  const double squares = OptionErrors(codecs_, input, absl::MakeSpan(errors));
  for (size_t o = 0; o < options; ++o) row[o] += errors[o];
  row[options] += squares;
  row[options + 1] += SumOfSquares(input.gradient, input.size);
}

// A sum of factors shows nothing of what they leave out: where errors are measured, such layers travel as bytes.
void CompressionControl::SetCodecs(Purpose purpose) {
  std::vector<const Codec*> of(params_.size(), codecs_.options[0]);
  for (size_t l = 0; l < plan_.option.size(); ++l) {
    const Codec* codec = codecs_.options[plan_.option[l]];
    if (purpose == Purpose::kMeasure && codec->factor_rank() > 0) codec = codecs_.measuring;
    if (purpose == Purpose::kTrain && turn_ != nullptr) codec = turn_;
    of[codecs_.layers[l]] = codec;
  }
  dp_.SetCodecs(std::move(of));
}

absl::Status CompressionControl::TakeTurns(absl::Span<const std::string> names) {
  for (const std::string& name : names) {
    const auto at = std::find_if(codecs_.options.begin(), codecs_.options.end(),
                                 [&](const Codec* c) { return c->name() == name && c->factor_rank() == 0; });
    if (at == codecs_.options.end())
      return absl::NotFoundError(absl::StrCat(
          "'", name, "' is not among comm.compression.options, or sends factors: plans cannot take turns with it"));
    turns_.push_back(*at);
  }
  return absl::OkStatus();
}

void CompressionControl::PutIntoForce(int64_t step) {
  plan_.first_step = step;
  SetCodecs(Purpose::kTrain);
  followed_ = 0;
  over_ = far_over_ = 0;
  factors_followed_ = factors_at_first_ = 0;
  times_sum_ = {};
  times_steps_ = 0;
}

absl::Status CompressionControl::EndStep(int64_t step, const RunErrors& codes, const RunErrors& factors,
                                         Outcome outcome) {
  if (turn_ != nullptr) return absl::OkStatus();  // none of it is the plan's
  if (TimeMode() && !Observes(step)) {
    // What is measured besides is no part of a step's times.
    const auto buckets = dp_.bucket_times();
    times_sum_.ready.resize(buckets.size());
    double free_at = 0;
    for (size_t b = 0; b < buckets.size(); ++b) {
      times_sum_.ready[b] += buckets[b].ready;
      times_sum_.busy += std::max(0.0, buckets[b].done - std::max(free_at, buckets[b].ready));
      free_at = std::max(free_at, buckets[b].done);
    }
    times_sum_.backward_end += dp_.backward_end();
    times_sum_.waited += dp_.reduce_wait_seconds();
    ++times_steps_;
  }
  if (outcome == Outcome::kTaken && plan_.id > 0) {
    FollowCodes(codes, step);
    FollowFactors(factors, step);
  }
  if (!Observes(step)) return absl::OkStatus();
  SetCodecs(Purpose::kTrain);
  ++mine_.steps;
  if (outcome == Outcome::kSkipped) {
    // Its errors mean nothing: the table is measured anew.
    mine_.rows.assign(mine_.rows.size(), 0);
    mine_.steps = 0;
    observe_from_ = step + 1;
    return absl::OkStatus();
  }
  AddFactorErrors();
  double squares = 0;
  for (size_t l = 0; l < codecs_.layers.size(); ++l) squares += step_rows_[l * width() + codecs_.options.size() + 1];
  for (size_t i = 0; i < step_rows_.size() && squares != 0; ++i) mine_.rows[i] += step_rows_[i] / squares;
  return step + 1 == observe_from_ + config_.table_steps() ? FinishTable(step) : absl::OkStatus();
}

// Of PowerSGD the error is that of the sum, and ranks share the layers.
void CompressionControl::AddFactorErrors() {
  std::vector<int> ranks;
  std::vector<size_t> at;
  for (size_t o = 0; o < codecs_.options.size(); ++o) {
    if (codecs_.options[o]->factor_rank() > 0) at.push_back(o);
  }
  std::sort(at.begin(), at.end(),
            [&](size_t a, size_t b) { return codecs_.options[a]->factor_rank() < codecs_.options[b]->factor_rank(); });
  for (const size_t o : at) ranks.push_back(codecs_.options[o]->factor_rank());
  for (size_t l = 0; l < codecs_.layers.size() && !at.empty(); ++l) {
    if (static_cast<int>(l) % mesh_.size() != mesh_.rank()) continue;
    const Param& param = *params_[codecs_.layers[l]];
    const Tensor sum = dp_.SummedGradient(param);
    std::vector<double> errors(at.size());
    const auto fit = static_cast<size_t>(
        std::count_if(ranks.begin(), ranks.end(), [&](int rank) { return rank <= MostRank(param); }));
    if (fit == 0) continue;
    const double squares = PowerSgdErrors(param.shape[0], param.size() / param.shape[0],
                                          {.gradient = sum.data<float>(), .size = param.size()},
                                          absl::MakeSpan(ranks).first(fit), absl::MakeSpan(errors).first(fit));
    double* row = step_rows_.data() + l * width();
    for (size_t i = 0; i < fit; ++i) row[at[i]] += errors[i];
    row[width() - 1] += squares;
  }
}

absl::Status CompressionControl::FinishTable(int64_t step) {
  if (planning_.valid()) planning_.wait();
  Table whole = mine_;
  SHOAL_ASSIGN_OR_RETURN(whole.rows, AllReduceValues(mesh_.control(), std::move(whole.rows), ReduceOp::kSum,
                                                     {.tag = "compression table"}));
  mine_ = {std::vector<double>(mine_.rows.size()), 0};
  if (TimeMode() && times_steps_ > 0) {
    // Readiness is that of the latest rank; a reduction starts in earnest when the last rank enters, so that it took as
    // long as for whoever came last.
    std::vector<double> times = times_sum_.ready;
    times.push_back(times_sum_.backward_end);
    times.push_back(-times_sum_.busy);
    for (double& t : times) t /= static_cast<double>(times_steps_);
    SHOAL_ASSIGN_OR_RETURN(
        times, AllReduceValues(mesh_.control(), std::move(times), ReduceOp::kMax, {.tag = "compression times"}));
    times_.busy = -times.back();
    times.pop_back();
    times_.backward_end = times.back();
    times.pop_back();
    times_.ready = std::move(times);
    times_.waited = times_sum_.waited / static_cast<double>(times_steps_);
    CorrectCosts();
  }
  if (!std::all_of(whole.rows.begin(), whole.rows.end(), [](double e) { return std::isfinite(e); })) {
    observe_from_ = step + config_.replan_every_steps();
    return absl::OkStatus();
  }
  table_ = std::move(whole);
  StartPlanning(step + config_.lead_steps());
  int64_t next = plan_.id == 0 ? config_.lead_steps() : config_.replan_every_steps();
  if (Ramp(activate_at_) < 1) next = RampStage() - config_.table_steps() - config_.lead_steps() + 1;
  observe_from_ = activate_at_ + next;
  return absl::OkStatus();
}

// What an active plan took, against what it was to take: of exchange from steps that encode nothing, of codecs from the
// others; of these only counts what the neighbour's travelling does not hide (Mesh::gradients).
void CompressionControl::CorrectCosts() {
  double exchange = 0, codec = 0;
  for (size_t p = 0; p < params_.size(); ++p) {
    const int layer = layer_of_[p];
    const Codec& c = *codecs_.options[layer < 0 ? 0 : plan_.option[layer]];
    const double bytes = static_cast<double>(params_[p]->size()) * kFloat;
    exchange += costs_.ExchangeSeconds(c, bytes, static_cast<double>(CodeBytes(c, *params_[p])), half());
    codec += costs_.CodecSeconds(c, bytes, half());
  }
  exchange += costs_.Latency(half()) * static_cast<double>(dp_.plan().buckets.size());
  constexpr double kLeast = 0.2, kMost = 5;
  if (codec == 0 && exchange > 0) {
    exchange_factor_ = std::clamp(times_.busy / exchange, kLeast, kMost);
  } else if (codec > 0) {
    codec_factor_ = std::clamp((times_.busy - exchange_factor_ * exchange) / codec, kLeast, kMost);
  }
}

// Squared errors of a layer's options over the squares of what is encoded; 1 where that is nothing.
std::vector<double> CompressionControl::Shares(const Table& table, size_t layer) const {
  const size_t options = codecs_.options.size();
  const double* const row = table.rows.data() + layer * width();
  std::vector<double> shares(options);
  for (size_t o = 0; o < options; ++o) {
    const double of = row[codecs_.options[o]->factor_rank() > 0 ? options + 2 : options];
    shares[o] = row[o] == 0 ? 0 : of > 0 ? row[o] / of : 1;
  }
  return shares;
}

double CompressionControl::WeightOf(const Table& table, size_t layer) const {
  return config_.error_measure() == config::CompressionConfig::GRADIENTS
             ? table.rows[layer * width() + codecs_.options.size() + 1]
             : static_cast<double>(params_[codecs_.layers[layer]]->size());
}

CompressionProblem CompressionControl::ProblemOf(const Table& table, double tightness) const {
  CompressionProblem problem;
  const size_t options = codecs_.options.size();
  for (size_t l = 0; l < codecs_.layers.size(); ++l) {
    const Param& param = *params_[codecs_.layers[l]];
    const std::vector<double> shares = Shares(table, l);
    const double most =
        std::max(config_.most_layer_error() * config_.most_layer_error(), shares[static_cast<size_t>(codecs_.uniform)]);
    auto& row = problem.layers.emplace_back(options);
    for (size_t o = 0; o < options; ++o) {
      const Codec& codec = *codecs_.options[o];
      const auto code_bytes = static_cast<double>(CodeBytes(codec, param));
      const double bytes = static_cast<double>(param.size()) * kFloat;
      const bool applies = codec.factor_rank() <= MostRank(param) && shares[o] <= most;
      row[o].cost = !applies     ? std::numeric_limits<double>::infinity()
                    : TimeMode() ? exchange_factor_ * costs_.ExchangeSeconds(codec, bytes, code_bytes, half()) +
                                       codec_factor_ * costs_.CodecSeconds(codec, bytes, half())
                                 : code_bytes;
      // Without feedback nothing waits: what a step leaves out is all.
      const double left = codecs_.feedback == GradientCodecs::Feedback::kYes ? Waiting(shares[o]) : shares[o];
      row[o].error_squares = left == 0 ? 0 : left * WeightOf(table, l);
    }
    problem.fallback.push_back(codecs_.uniform);
    problem.budget += codecs_.error_budget * row[static_cast<size_t>(codecs_.uniform)].error_squares;
  }
  // Where the budget is but that of the default, the default is within it whatever sums round to.
  if (tightness < 1) problem.budget *= tightness;
  return problem;
}

OverlapProblem CompressionControl::OverlapOf(CompressionProblem layers) const {
  OverlapProblem p;
  p.layers = std::move(layers);
  const size_t options = codecs_.options.size(), buckets = dp_.plan().buckets.size();
  p.ready = times_.ready;
  p.ready.resize(buckets);
  p.backward_end = times_.backward_end;
  p.bucket_seconds.assign(buckets, exchange_factor_ * costs_.Latency(half()));
  std::vector<double> stolen(buckets);
  for (size_t l = 0; l < codecs_.layers.size(); ++l) {
    const int param = codecs_.layers[l];
    p.bucket_of.push_back(dp_.plan().bucket_of[param]);
    auto& row = p.stolen.emplace_back(options);
    for (size_t o = 0; o < options; ++o) {
      const Codec& codec = *codecs_.options[o];
      row[o] = costs_.DelaySeconds(codec, static_cast<double>(params_[param]->size()) * kFloat,
                                   static_cast<double>(CodeBytes(codec, *params_[param])), half());
    }
    stolen[static_cast<size_t>(p.bucket_of.back())] += row[static_cast<size_t>(plan_.option[l])];
  }
  for (size_t param = 0; param < params_.size(); ++param) {
    if (layer_of_[param] >= 0) continue;
    const double bytes = static_cast<double>(params_[param]->size()) * kFloat;
    p.bucket_seconds[static_cast<size_t>(dp_.plan().bucket_of[param])] +=
        exchange_factor_ * costs_.ExchangeSeconds(*codecs_.options[0], bytes, bytes, half());
  }
  // As it would be without the exchange of the plan in force, which puts off what is ready after it.
  double late = 0;
  for (size_t b = 0; b < buckets; ++b) {
    p.ready[b] = std::max(b == 0 ? 0 : p.ready[b - 1], p.ready[b] - late);
    late += stolen[b];
  }
  p.backward_end = std::max(buckets > 0 ? p.ready.back() : 0, p.backward_end - late);
  return p;
}

// Share of the budget that a plan from `first_step` on may spend, in squared errors.
double CompressionControl::Ramp(int64_t first_step) const {
  const int64_t since = first_step - config_.warmup_steps() + RampStage();
  return since >= config_.ramp_steps() ? 1 : static_cast<double>(since) / config_.ramp_steps();
}

LayerPlan CompressionControl::Planned(const Table& table, double tightness, double ramp) const {
  const CompressionProblem problem = ProblemOf(table, tightness * ramp);
  double squares = 0;  // that errors are relative to
  for (size_t l = 0; l < codecs_.layers.size(); ++l) squares += WeightOf(table, l);
  LayerPlan plan;
  plan.id = plan_.id + 1;
  const auto take = [&](const CompressionPlan& from) {
    plan.option = from.option;
    plan.cost = from.cost;
    plan.bound = from.bound;
    plan.notes = from.notes;
    plan.relative_error = std::sqrt(from.error_squares / squares);
  };
  double current_cost = 0;
  const auto stay = [&](absl::string_view why) {
    plan.option.clear();
    plan.notes = std::string(why);
    return plan;
  };
  if (!(squares > 0)) return stay("the gradients are zero");
  if (!std::isfinite(problem.budget)) {
    return stay(absl::StrCat(codecs_.options[codecs_.uniform]->name(),
                             " for all would leave more of some layers than it is given, which is no budget"));
  }
  if (TimeMode()) {
    const OverlapProblem overlap = OverlapOf(problem);
    const auto best = PlanWithOverlap(overlap);
    if (!best.ok()) return stay(best.status().message());
    take(*best);
    // Ranks that are not equally fast wait for each other, too: what the plan in force waits beyond what it should.
    const double others = std::max(0.0, times_.waited - TimesOf(overlap, plan_.option).exposed());
    plan.exposed_seconds = best->exposed_seconds + others;
    plan.uniform_cost = StepEnd(overlap, problem.fallback);
    current_cost = StepEnd(overlap, plan_.option);
  } else {
    const auto best = PlanCompression(problem);
    if (!best.ok()) return stay(best.status().message());
    take(*best);
    for (size_t l = 0; l < plan_.option.size(); ++l) {
      plan.uniform_cost += problem.layers[l][problem.fallback[l]].cost;
      current_cost += problem.layers[l][plan_.option[l]].cost;
    }
  }
  double current_error = 0;
  for (size_t l = 0; l < plan_.option.size(); ++l) current_error += problem.layers[l][plan_.option[l]].error_squares;
  if (plan_.id > 0 && current_error <= problem.budget && plan.cost > (1 - kWorthIt) * current_cost)
    return stay("a new one would be worth less than 2 %");
  plan.relative_budget = std::sqrt(problem.budget / squares);
  double coded_error = 0, coded_squares = 0, error = 0;
  for (size_t l = 0; l < plan.option.size(); ++l) {
    const Codec& codec = *codecs_.options[plan.option[l]];
    error += problem.layers[l][plan.option[l]].error_squares;
    if (codec.exact() || codec.factor_rank() > 0) continue;
    const double gradient = table.rows[l * width() + codecs_.options.size() + 1];
    const double share = Shares(table, l)[static_cast<size_t>(plan.option[l])], given = gradient / (1 - share);
    coded_error += given * share;
    coded_squares += given;
  }
  if (coded_squares > 0)
    plan.coded_budget = std::sqrt(coded_error / coded_squares * problem.budget / tightness / error);
  for (size_t p = 0; p < params_.size(); ++p) {
    const int layer = layer_of_[p];
    const Param& param = *params_[p];
    plan.bytes += static_cast<double>(CodeBytes(*codecs_.options[layer < 0 ? 0 : plan.option[layer]], param));
    plan.uniform_bytes += static_cast<double>(CodeBytes(*codecs_.options[layer < 0 ? 0 : codecs_.uniform], param));
    plan.plain_bytes += static_cast<double>(param.size()) * kFloat;
  }
  return plan;
}

// Rank 0 plans beside training; what it reads meanwhile changes only once the plan has been asked for.
void CompressionControl::StartPlanning(int64_t first_step) {
  if (planning_.valid()) planning_.wait();
  activate_at_ = first_step;
  pending_.clear();
  if (mesh_.rank() != 0) return;
  const auto plan = [this, table = table_, tightness = tightness_, first_step] {
    LayerPlan planned = Planned(table, tightness, Ramp(first_step));
    planned.first_step = first_step;
    if (!planned.option.empty() || codecs_.layers.empty()) return ToJson(planned, codecs_).dump();
    return json{{"stays", planned.notes}}.dump();
  };
  planning_ = std::async(std::launch::async, plan);
}

std::string CompressionControl::PendingText() {
  if (planning_.valid()) pending_ = planning_.get();
  return pending_;
}

void CompressionControl::FollowCodes(const RunErrors& codes, int64_t step) {
  if (!(codes.squares > 0) || !(plan_.coded_budget > 0)) return;
  const double relative = codes.error_squares / codes.squares, allowed = plan_.coded_budget * plan_.coded_budget;
  followed_ = followed_ == 0 ? relative : (1 - kFollow) * followed_ + kFollow * relative;
  far_over_ = relative > kFarOver * allowed ? far_over_ + 1 : 0;
  const bool loose = tightness_ < 1 && followed_ < kUnder * allowed;
  over_ = followed_ > kOver * allowed || loose ? over_ + 1 : 0;
  if (far_over_ >= kFarOverSteps) {
    if (planning_.valid()) planning_.wait();
    planning_ = {};
    pending_.clear();
    plan_.option.assign(plan_.option.size(), codecs_.uniform);
    ++plan_.id;
    plan_.exposed_seconds = -1;
    plan_.bytes = plan_.uniform_bytes;
    plan_.cost = plan_.uniform_cost;
    plan_.notes = "errors were far above the budget";
    news_ = absl::StrFormat(
        "compression plan %d: %s for all until errors are measured anew, since codes left %.3f of what "
        "they were given, %.3f being allowed",
        plan_.id, codecs_.options[codecs_.uniform]->name(), std::sqrt(relative), plan_.coded_budget);
    plan_.coded_budget = 0;
    PutIntoForce(step + 1);
    observe_from_ = step + 1;
    activate_at_ = -1;
  } else if (over_ >= kOverSteps && activate_at_ < 0 && table_.steps > 0 && (!TimeMode() || !times_.ready.empty())) {
    tightness_ = std::clamp(tightness_ * allowed / followed_, kTightest, 1.0);
    over_ = 0;
    StartPlanning(step + config_.lead_steps());
    // The last table does not say why; the next one may.
    if (!loose && mine_.steps == 0) observe_from_ = std::min(observe_from_, activate_at_ + 1);
  }
}

void CompressionControl::FollowFactors(const RunErrors& factors, int64_t step) {
  constexpr int64_t kSettled = 20;  // steps in which residuals grow to what they will be
  constexpr double kGrown = 1.5;
  if (!(factors.squares > 0)) return;
  const double relative = factors.error_squares / factors.squares;
  factors_followed_ = factors_followed_ == 0 ? relative : (1 - kFollow) * factors_followed_ + kFollow * relative;
  if (step == plan_.first_step + kSettled) factors_at_first_ = factors_followed_;
  // Of shares near 1 the rest is what tells them apart.
  const auto odds = [](double share) { return share / std::max(1e-9, 1 - share); };
  if (factors_at_first_ == 0 || odds(factors_followed_) < kGrown * odds(factors_at_first_)) return;
  factors_at_first_ = 0;
  if (activate_at_ < 0 && mine_.steps == 0) observe_from_ = std::min(observe_from_, step + 1);
}

std::string CompressionControl::PlanJson() const {
  json j = ToJson(plan_, codecs_);
  json layers = json::array(), bits = json::array();
  for (size_t l = 0; l < codecs_.layers.size(); ++l) {
    const Param& param = *params_[codecs_.layers[l]];
    layers.push_back(param.name);
    bits.push_back(8.0 * static_cast<double>(CodeBytes(*codecs_.options[plan_.option[l]], param)) /
                   static_cast<double>(param.size()));
  }
  j["layers"] = layers;
  j["bits_per_element"] = bits;
  return j.dump();
}

std::string CompressionControl::PlanMark() const {
  return absl::StrCat("plan ", plan_.id, " #", absl::Hex(NameHash(PlanJson())));
}

void CompressionControl::VisitState(StateVisitor& visitor) {
  constexpr char kState[] = "compression.control";
  if (!visitor.Has(kState)) return;
  // A pending plan is waited for: rank 0's is what all will take.
  json layers = json::array(), options = json::array();
  for (const int layer : codecs_.layers) layers.push_back(params_[layer]->name);
  for (const Codec* option : codecs_.options) options.push_back(std::string(option->name()));
  json j = {{"plan", ToJson(plan_, codecs_)},
            {"layers", layers},
            {"options", options},
            {"pending", mesh_.rank() == 0 ? PendingText() : ""},
            {"activate_at", activate_at_},
            {"observe_from", observe_from_},
            {"tightness", tightness_},
            {"exchange_factor", exchange_factor_},
            {"codec_factor", codec_factor_},
            {"followed", followed_},
            {"over", over_},
            {"factors_followed", factors_followed_},
            {"factors_at_first", factors_at_first_},
            {"far_over", far_over_},
            {"table", table_.rows},
            {"table_steps", table_.steps},
            {"mine_steps", mine_.steps}};
  std::string text = j.dump();
  const std::string before = text;
  visitor.Blob(kState, text);
  constexpr char kTables[] = "compression.tables";
  const int64_t n = static_cast<int64_t>(mine_.rows.size()), ranks = mesh_.size();
  int64_t saved_ranks = ranks, saved_size = n;
  visitor.Scalar("compression.ranks", saved_ranks);
  visitor.Scalar("compression.table_size", saved_size);
  if (saved_ranks == ranks && saved_size == n && n > 0)
    visitor.Shard(kTables, Tensor::Borrow(mine_.rows.data(), {n}, DType::kF64), {{ranks * n}, {mesh_.rank() * n}, {n}});
  if (text == before) return;
  const json loaded = json::parse(text, nullptr, false);
  if (!loaded.is_object()) return;
  auto plan = FromJson(loaded.at("plan"), codecs_);
  const bool same_layers = loaded.value("layers", json()) == layers,
             same_options = loaded.value("options", json()) == options;
  if (!plan.ok() || !same_layers || !same_options) {
    mine_.rows.assign(mine_.rows.size(), 0);
    news_ = absl::StrCat("the checkpoint's compression plan is of other ", same_layers ? "options" : "layers",
                         ": it is planned anew, and until then nothing is encoded");
    return;
  }
  plan_ = *std::move(plan);
  const int64_t first_step = plan_.first_step;
  if (plan_.id > 0) PutIntoForce(first_step);
  pending_ = loaded.at("pending").get<std::string>();
  activate_at_ = loaded.at("activate_at").get<int64_t>();
  observe_from_ = loaded.at("observe_from").get<int64_t>();
  tightness_ = loaded.at("tightness").get<double>();
  exchange_factor_ = loaded.at("exchange_factor").get<double>();
  codec_factor_ = loaded.at("codec_factor").get<double>();
  followed_ = loaded.at("followed").get<double>();
  over_ = loaded.at("over").get<int64_t>();
  factors_followed_ = loaded.at("factors_followed").get<double>();
  factors_at_first_ = loaded.at("factors_at_first").get<double>();
  far_over_ = loaded.at("far_over").get<int64_t>();
  if (saved_size == n)
    table_ = {loaded.at("table").get<std::vector<double>>(), loaded.at("table_steps").get<int64_t>()};
  mine_.steps = loaded.at("mine_steps").get<int64_t>();
}

}  // namespace shoal
