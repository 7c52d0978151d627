#include "parallel/sequence_cost_fit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

using nlohmann::json;

// A step counts this much of the one after it; less where residuals of recent steps say that the machine has changed.
constexpr double kForget = 0.98, kForgetFast = 0.8, kChanged = 0.15;
// A group counts relative to its time, but to no less than this share of what was predicted: a clock that reads almost
// nothing is not worth everything.
constexpr double kLeastShare = 0.1;
// Of the pulls, in squares of relative residuals. Times scatter by about 5 % and coefficients are off by about their
// size: 0.05^2 / 1^2 weighs the two as their variances do. The scale of all is better known from the times: it is
// pulled less.
constexpr double kPull = 2.5e-3, kPullToStart = 1e-4;
// Huber's: residuals of more than kClip typical ones count as such; a typical one is at least kLeastTypical.
constexpr double kClip = 3.5, kLeastTypical = 0.02;
constexpr int kReweightings = 5;
// How many recent steps make a typical residual, and what is outside: short, so that a change that stays is soon
// typical.
constexpr size_t kTypicalSteps = 9, kOutsideSteps = 15;
constexpr size_t kFixed = 0, kQuadratic = 1, kLinear = 2, kExchange = 3;  // unknowns
constexpr double kLeast = 1e-3;  // of the unknown that keeps a sequence from taking no time

void Push(std::vector<double>& recent, double value, size_t most) {
  recent.push_back(value);
  if (recent.size() > most) recent.erase(recent.begin());
}

// The smallest value that `share` of all do not exceed; 0 of none.
double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto at = static_cast<int64_t>(std::ceil(share * static_cast<double>(values.size()))) - 1;
  return values[static_cast<size_t>(std::max<int64_t>(0, at))];
}

bool Positive(double value) { return std::isfinite(value) && value > 0; }

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Solves the rows and columns of `free` of a symmetric positive definite system; the other unknowns are 0.
std::vector<double> SolveFree(const std::vector<double>& matrix, const std::vector<double>& right,
                              const std::vector<bool>& free) {
  const size_t all = right.size();
  std::vector<size_t> at;
  for (size_t i = 0; i < all; ++i) {
    if (free[i]) at.push_back(i);
  }
  const size_t n = at.size();
  std::vector<double> a(n * n), b(n);
  for (size_t i = 0; i < n; ++i) {
    b[i] = right[at[i]];
    for (size_t j = 0; j < n; ++j) a[i * n + j] = matrix[at[i] * all + at[j]];
  }
  for (size_t k = 0; k < n; ++k) {
    for (size_t i = k + 1; i < n; ++i) {
      const double factor = a[i * n + k] / a[k * n + k];
      for (size_t j = k; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
      b[i] -= factor * b[k];
    }
  }
  std::vector<double> x(all, 0);
  for (size_t k = n; k-- > 0;) {
    double sum = b[k];
    for (size_t j = k + 1; j < n; ++j) sum -= a[k * n + j] * x[at[j]];
    x[at[k]] = sum / a[k * n + k];
  }
  return x;
}

json CoefficientsJson(const SequenceCostModel& model) {
  return {{"quadratic", model.quadratic},
          {"linear", model.linear},
          {"fixed", model.fixed},
          {"exchange_bytes_per_token", model.exchange_bytes_per_token},
          {"bandwidth", model.bandwidth}};
}

void SetCoefficients(const json& j, SequenceCostModel& model) {
  model.quadratic = j.at("quadratic").get<double>();
  model.linear = j.at("linear").get<double>();
  model.fixed = j.at("fixed").get<double>();
  model.exchange_bytes_per_token = j.at("exchange_bytes_per_token").get<double>();
  model.bandwidth = j.at("bandwidth").get<std::vector<double>>();
}

double ExchangePerToken(const SequenceCostModel& model, size_t k) {
  if (model.bandwidth.empty()) return 0;
  return model.exchange_bytes_per_token / model.bandwidth[std::min(k, model.bandwidth.size() - 1)];
}

}  // namespace

SequenceCostFit::SequenceCostFit(const SequenceCostModel& start, int ranks, Coefficients coefficients)
    : ranks_(ranks), coefficients_(coefficients) {
  Start(start);
}

void SequenceCostFit::Start(const SequenceCostModel& start) {
  start_ = model_ = start;
  const int degree = start.LargestDegree(std::max(1, ranks_));
  const auto levels = static_cast<size_t>(std::countr_zero(static_cast<unsigned>(degree)));
  const auto tokens = static_cast<double>(std::max<int64_t>(1, start.tokens_per_rank));
  const double full = start.Seconds(std::max<int64_t>(1, start.tokens_per_rank), 1);
  // What costs nothing at the start is looked for in tenths of a full rank's time.
  constexpr double kUnit = 0.1;
  units_ = {kUnit * full, kUnit * full / (tokens * tokens), kUnit * full / tokens};
  units_.resize(kExchange + levels, kUnit * full / tokens);
  prior_.assign(units_.size(), 0);
  std::vector<double> coefficients = {start.fixed, start.quadratic, start.linear};
  for (size_t k = 0; k < levels; ++k) coefficients.push_back(ExchangePerToken(start, k));
  for (size_t i = 0; i < units_.size(); ++i) {
    if (coefficients[i] <= 0) continue;
    units_[i] = coefficients[i];
    prior_[i] = 1;
  }
  x_ = prior_;
  matrix_.assign(units_.size() * units_.size(), 0);
  right_.assign(units_.size(), 0);
  residuals_.clear();
  outsides_.clear();
  errors_.clear();
}

std::vector<double> SequenceCostFit::Row(const GroupTime& group) const {
  const double share = 1.0 / group.degree;
  std::vector<double> row(units_.size(), 0);
  row[kFixed] = units_[kFixed];
  row[kQuadratic] = units_[kQuadratic] * group.squares * share;
  row[kLinear] = units_[kLinear] * group.tokens * share;
  if (group.degree > 1) {
    const size_t k = kExchange + static_cast<size_t>(std::countr_zero(static_cast<unsigned>(group.degree))) - 1;
    row[k] = units_[k] * group.tokens * share;
  }
  return row;
}

void SequenceCostFit::AddStep(absl::Span<const GroupTime> groups, const StepTime& step) {
  if (coefficients_ == Coefficients::kFitted) Fit(groups);
  if (!Positive(step.seconds)) return;
  if (std::isfinite(step.micro_batches))
    Push(outsides_, std::max(0.0, step.seconds - step.micro_batches), kOutsideSteps);
  if (step.predicted >= 0) Push(errors_, std::abs(step.predicted - step.seconds) / step.seconds, kRecentSteps);
}

void SequenceCostFit::Fit(absl::Span<const GroupTime> groups) {
  struct Equation {
    std::vector<double> row;  // times the unknowns: `right`
    double right = 0;
    double Residual(const std::vector<double>& x) const { return std::abs(Dot(row, x) - right); }
  };
  std::vector<Equation> equations;
  std::vector<double> residuals;
  for (const GroupTime& group : groups) {
    if (!Positive(group.seconds)) continue;
    Equation equation{Row(group), group.seconds};
    const double scale = std::max(group.seconds, kLeastShare * Dot(equation.row, x_));
    for (double& value : equation.row) value /= scale;
    equation.right /= scale;
    residuals.push_back(equation.Residual(x_));
    equations.push_back(std::move(equation));
  }
  if (equations.empty()) return;
  const double recent = Quantile(residuals_, 0.5);
  const double clip =
      residuals_.empty() ? std::numeric_limits<double>::infinity() : kClip * std::max(kLeastTypical, recent);
  const double keep = recent > kChanged ? kForgetFast : kForget;
  std::vector<double> matrix, right, x = x_;
  const size_t n = x.size();
  for (int pass = 0; pass < kReweightings; ++pass) {
    matrix = matrix_;
    right = right_;
    for (double& value : matrix) value *= keep;
    for (double& value : right) value *= keep;
    for (const Equation& equation : equations) {
      const double residual = equation.Residual(x), weight = residual > clip ? clip / residual : 1;
      for (size_t i = 0; i < n; ++i) {
        right[i] += weight * equation.row[i] * equation.right;
        for (size_t j = 0; j < n; ++j) matrix[i * n + j] += weight * equation.row[i] * equation.row[j];
      }
    }
    x = Solve(matrix, right);
    // Sums of squares beyond what doubles hold: the step is passed over.
    if (!std::all_of(x.begin(), x.end(), [](double value) { return std::isfinite(value); })) return;
  }
  x_ = std::move(x);
  matrix_ = std::move(matrix);
  right_ = std::move(right);
  Push(residuals_, Quantile(std::move(residuals), 0.5), kTypicalSteps);
  MakeModel();
}

// Lawson and Hanson's way backwards: all unknowns are free, negative ones are set to 0, the worst first, and freed once
// at most where the fit would then be better.
std::vector<double> SequenceCostFit::Solve(std::vector<double> matrix, std::vector<double> right) const {
  const size_t n = right.size();
  const size_t root = prior_[kLinear] > 0 ? kLinear : kQuadratic;
  for (size_t i = 0; i < n; ++i) {
    const size_t neighbour = i > kExchange ? i - 1 : root;
    if (i == root || prior_[i] == 0 || prior_[neighbour] == 0) {
      const double pull = i == root ? kPullToStart : kPull;
      matrix[i * n + i] += pull;
      right[i] += pull * prior_[i];
      continue;
    }
    matrix[i * n + i] += kPull;
    matrix[neighbour * n + neighbour] += kPull;
    matrix[i * n + neighbour] -= kPull;
    matrix[neighbour * n + i] -= kPull;
  }
  std::vector<bool> free(n, true), freed(n, false);
  std::vector<double> x = SolveFree(matrix, right, free);
  for (;;) {
    const auto least = static_cast<size_t>(std::min_element(x.begin(), x.end()) - x.begin());
    if (x[least] < 0) {
      free[least] = false;
    } else {
      size_t best = n;
      double gain = 0;
      for (size_t i = 0; i < n; ++i) {
        if (free[i] || freed[i]) continue;
        double slope = right[i];
        for (size_t j = 0; j < n; ++j) slope -= matrix[i * n + j] * x[j];
        if (slope > gain) best = i, gain = slope;
      }
      if (best == n) break;
      free[best] = freed[best] = true;
    }
    x = SolveFree(matrix, right, free);
  }
  x[root] = std::max(x[root], kLeast);
  return x;
}

void SequenceCostFit::MakeModel() {
  model_ = start_;
  model_.fixed = units_[kFixed] * x_[kFixed];
  model_.quadratic = units_[kQuadratic] * x_[kQuadratic];
  model_.linear = units_[kLinear] * x_[kLinear];
  if (std::all_of(x_.begin() + kExchange, x_.end(), [](double x) { return x == 0; }) && start_.bandwidth.empty())
    return;
  if (model_.exchange_bytes_per_token <= 0) model_.exchange_bytes_per_token = 1;
  model_.bandwidth.clear();
  for (size_t i = kExchange; i < x_.size(); ++i)
    model_.bandwidth.push_back(model_.exchange_bytes_per_token / (units_[i] * std::max(x_[i], kLeast)));
}

double SequenceCostFit::outside() const { return Quantile(outsides_, 0.5); }

SequenceCostFit::Errors SequenceCostFit::errors() const {
  return {static_cast<int64_t>(errors_.size()), Quantile(errors_, 0.5), Quantile(errors_, 0.95)};
}

std::string SequenceCostFit::Save() const {
  return json{{"start", CoefficientsJson(start_)},
              {"model", CoefficientsJson(model_)},
              {"unknowns", x_},
              {"matrix", matrix_},
              {"right", right_},
              {"residuals", residuals_},
              {"outsides", outsides_},
              {"errors", errors_}}
      .dump();
}

absl::Status SequenceCostFit::Load(const std::string& text) {
  const json j = json::parse(text, nullptr, false);
  if (!j.is_object()) return absl::DataLossError("the state of a sequence cost fit is no JSON object");
  SequenceCostFit loaded = *this;
  try {
    SequenceCostModel start = start_, model = start_;
    SetCoefficients(j.at("start"), start);
    SetCoefficients(j.at("model"), model);
    if (absl::Status good = model.Check(); !good.ok()) return absl::DataLossError(good.message());
    const auto x = j.at("unknowns").get<std::vector<double>>();
    const auto matrix = j.at("matrix").get<std::vector<double>>();
    const auto right = j.at("right").get<std::vector<double>>();
    if (x.size() != x_.size()) {
      loaded.Start(model);
    } else if (matrix.size() != x.size() * x.size() || right.size() != x.size()) {
      return absl::DataLossError("the state of a sequence cost fit has a matrix of another size");
    } else {
      loaded.Start(start);
      loaded.model_ = model;
      loaded.x_ = x;
      loaded.matrix_ = matrix;
      loaded.right_ = right;
      loaded.residuals_ = j.at("residuals").get<std::vector<double>>();
      loaded.outsides_ = j.at("outsides").get<std::vector<double>>();
      loaded.errors_ = j.at("errors").get<std::vector<double>>();
    }
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("the state of a sequence cost fit is damaged: ", e.what()));
  }
  *this = std::move(loaded);
  return absl::OkStatus();
}

double ModelChange(const SequenceCostModel& from, const SequenceCostModel& to, int ranks) {
  constexpr int64_t kShort = 16;  // sequences that fill a rank
  double change = 0;
  const int64_t tokens = std::max<int64_t>(1, from.tokens_per_rank), few = std::max<int64_t>(1, tokens / kShort);
  for (int degree = 1; degree <= from.LargestDegree(std::max(1, ranks)); degree *= 2) {
    const auto group = [&](const SequenceCostModel& model, int64_t length, int64_t count) {
      return model.fixed + static_cast<double>(count) * model.Seconds(length, degree);
    };
    const std::pair<int64_t, int64_t> groups[] = {{degree * tokens, 1}, {few, kShort * degree}, {few, 1}};
    for (const auto& [length, count] : groups)
      change = std::max(change, std::abs(group(to, length, count) / group(from, length, count) - 1));
  }
  return change;
}

}  // namespace shoal
