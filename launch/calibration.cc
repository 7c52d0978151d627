#include "launch/calibration.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/folder_lock.h"
#include "runtime/base/file_system.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using nlohmann::json;

struct Point {
  std::array<double, 3> x;  // calls, FLOPs, bytes, each divided by the measured seconds
  double weight;
};

// Least squares of sum weight (x . rate - 1)^2 over the features in `mask`, by normal equations scaled to a unit
// diagonal. False when they are singular.
bool Solve(const std::vector<Point>& points, unsigned mask, std::array<double, 3>& rate) {
  std::array<int, 3> index{};
  int n = 0;
  for (int f = 0; f < 3; ++f) {
    if (mask >> f & 1) index[n++] = f;
  }
  double a[3][4] = {};
  for (const Point& p : points) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) a[i][j] += p.weight * p.x[index[i]] * p.x[index[j]];
      a[i][3] += p.weight * p.x[index[i]];
    }
  }
  std::array<double, 3> scale{};
  for (int i = 0; i < n; ++i) {
    if (a[i][i] <= 0) return false;
    scale[i] = 1 / std::sqrt(a[i][i]);
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) a[i][j] *= scale[i] * scale[j];
    a[i][3] *= scale[i];
  }
  for (int i = 0; i < n; ++i) {
    if (a[i][i] < 1e-6) return false;
    for (int r = 0; r < n; ++r) {
      if (r == i) continue;
      const double factor = a[r][i] / a[i][i];
      for (int j = i; j < n; ++j) a[r][j] -= factor * a[i][j];
      a[r][3] -= factor * a[i][3];
    }
  }
  rate = {};
  for (int i = 0; i < n; ++i) rate[index[i]] = scale[i] * a[i][3] / a[i][i];
  return true;
}

// Non-negative least squares over three features: the best of the seven subsets whose solution is not negative.
OpRate FitRate(const std::vector<Point>& points) {
  double best = std::numeric_limits<double>::infinity();
  OpRate rate;
  for (unsigned mask = 1; mask < 8; ++mask) {
    std::array<double, 3> r{};
    if (!Solve(points, mask, r) || r[0] < 0 || r[1] < 0 || r[2] < 0) continue;
    double residual = 0;
    for (const Point& p : points) {
      const double miss = p.x[0] * r[0] + p.x[1] * r[1] + p.x[2] * r[2] - 1;
      residual += p.weight * miss * miss;
    }
    // A rate more must buy something.
    if (residual < 0.999 * best) {
      best = residual;
      rate = {r[0], r[1], r[2]};
    }
  }
  return rate;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

json ToJson(const LinearTime& t) { return {{"seconds", t.latency}, {"seconds_per_byte", t.per_byte}}; }
LinearTime TimeFrom(const json& j) { return {j.at("seconds").get<double>(), j.at("seconds_per_byte").get<double>()}; }

json ToJson(const ExchangeCosts& costs) {
  json codecs = json::object();
  for (const auto& [name, c] : costs.codecs)
    codecs[name] = {{"encode", ToJson(c.encode)}, {"decode", ToJson(c.decode)}};
  return {{"ranks", costs.ranks},
          {"all_reduce", ToJson(costs.all_reduce)},
          {"reduce_scatter", ToJson(costs.reduce_scatter)},
          {"all_to_all", ToJson(costs.all_to_all)},
          {"all_gather", ToJson(costs.all_gather)},
          {"cpu_seconds_per_byte", costs.cpu_per_byte},
          {"delay_per_cpu_second", costs.delay_per_cpu_second},
          {"codecs", codecs}};
}
ExchangeCosts ExchangeFrom(const json& j) {
  ExchangeCosts costs{.ranks = j.at("ranks").get<int>(),
                      .all_reduce = TimeFrom(j.at("all_reduce")),
                      .reduce_scatter = TimeFrom(j.at("reduce_scatter")),
                      .all_to_all = TimeFrom(j.at("all_to_all")),
                      .all_gather = TimeFrom(j.at("all_gather")),
                      .cpu_per_byte = j.at("cpu_seconds_per_byte").get<double>(),
                      .delay_per_cpu_second = j.at("delay_per_cpu_second").get<double>()};
  for (const auto& [name, c] : j.at("codecs").items())
    costs.codecs[name] = {TimeFrom(c.at("encode")), TimeFrom(c.at("decode"))};
  return costs;
}

json ToJson(const Calibration& c) {
  json ops = json::object();
  for (const auto& [name, rate] : c.ops)
    ops[name] = {{"seconds_per_call", rate.call}, {"seconds_per_flop", rate.flop}, {"seconds_per_byte", rate.byte}};
  return {{"host", c.key.hosts},
          {"ranks", c.key.ranks},
          {"threads", c.key.threads},
          {"compute", config::RuntimeConfig::Compute_Name(c.key.compute)},
          {"product_peak", c.product_peak},
          {"step_seconds", c.step_seconds},
          {"exchange", ToJson(c.exchange)},
          {"ops", ops}};
}

Calibration FromJson(const json& j) {
  Calibration c;
  c.key.hosts = j.at("host").get<std::string>();
  c.key.ranks = j.at("ranks").get<int>();
  c.key.threads = j.at("threads").get<int>();
  config::RuntimeConfig::Compute_Parse(j.at("compute").get<std::string>(), &c.key.compute);
  c.product_peak = j.at("product_peak").get<double>();
  c.step_seconds = j.at("step_seconds").get<double>();
  if (j.contains("exchange")) c.exchange = ExchangeFrom(j.at("exchange"));
  for (const auto& [name, rate] : j.at("ops").items()) {
    c.ops[name] = {rate.at("seconds_per_call").get<double>(), rate.at("seconds_per_flop").get<double>(),
                   rate.at("seconds_per_byte").get<double>()};
  }
  return c;
}

}  // namespace

std::string CalibrationKey::Text() const {
  constexpr size_t kShown = 4;
  std::vector<std::string> runs = absl::StrSplit(hosts, ", ");
  std::string where = hosts.empty() ? "any host" : hosts;
  if (runs.size() > kShown) {
    const size_t more = runs.size() - kShown;
    runs.resize(kShown);
    where = absl::StrCat(absl::StrJoin(runs, ", "), " and ", more, " more (#", absl::Hex(NameHash(hosts)), ")");
  }
  return absl::StrCat(ranks, ranks == 1 ? " rank x " : " ranks x ", threads, threads == 1 ? " thread, " : " threads, ",
                      config::RuntimeConfig::Compute_Name(compute), ", on ", where);
}

std::string HostsText(const std::vector<std::string>& host_of_rank) {
  std::vector<std::string> runs;
  for (size_t i = 0, end = 0; i < host_of_rank.size(); i = end) {
    while (end < host_of_rank.size() && host_of_rank[end] == host_of_rank[i]) ++end;
    runs.push_back(end - i == host_of_rank.size() ? host_of_rank[i] : absl::StrCat(host_of_rank[i], " x ", end - i));
  }
  return absl::StrJoin(runs, ", ");
}

absl::StatusOr<std::string> HostsOf(Communicator& world) {
  SHOAL_ASSIGN_OR_RETURN(const auto hosts, AllGatherStrings(world, HostName(), {.tag = "hosts"}));
  return HostsText(hosts);
}

absl::StatusOr<double> Calibration::StepSeconds(const CostSheet& cost, double product_peak_now) const {
  double seconds = step_seconds;
  std::vector<std::string> unknown;
  for (const auto& [name, op] : cost.ops) {
    const auto at = ops.find(name);
    if (at != ops.end())
      seconds += at->second.Seconds(op);
    else if (op.bytes > 0)
      unknown.push_back(name);
  }
  if (!unknown.empty())
    return absl::NotFoundError(absl::StrCat("the calibration of ", key.Text(), " has no ", absl::StrJoin(unknown, ", "),
                                            "; run `shoal calibrate` again with this build"));
  return seconds * product_peak / product_peak_now;
}

void CalibrationFit::Add(const Span& span) {
  if (span.track != Span::Track::kMain) return;
  if (span.name == "step") {
    if (steps_++ >= warmup_) {
      for (auto& [name, samples] : pending_) {
        auto& all = samples_[name];
        all.insert(all.end(), samples.begin(), samples.end());
      }
      outside_.push_back(std::max(0.0, span.seconds - pending_seconds_));
    }
    pending_.clear();
    pending_seconds_ = 0;
    return;
  }
  if (span.bytes == 0) return;  // a phase that contains ops
  pending_[std::string(span.name)].push_back({{1, span.flops, span.bytes}, span.seconds});
  pending_seconds_ += span.seconds;
}

Calibration CalibrationFit::Fit() const {
  Calibration c;
  for (const auto& [name, samples] : samples_) {
    // Calls of one size are one point at their median, so that a disturbed call does not count.
    std::map<std::pair<double, double>, std::vector<double>> sizes;
    for (const Sample& s : samples) sizes[{s.cost.flops, s.cost.bytes}].push_back(s.seconds);
    std::vector<Point> points;
    for (auto& [size, seconds] : sizes) {
      const double t = std::max(1e-9, Median(seconds));
      points.push_back({{1 / t, size.first / t, size.second / t}, static_cast<double>(seconds.size()) * t});
    }
    c.ops[name] = FitRate(points);
  }
  c.step_seconds = Median(outside_);
  return c;
}

std::string CalibrationPath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return absl::StrCat(cache, "/shoal/calibration.json");
  const char* home = std::getenv("HOME");
  return absl::StrCat(home != nullptr ? home : "", "/.cache/shoal/calibration.json");
}

absl::StatusOr<std::vector<Calibration>> ReadCalibrations(const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, PosixFiles().Read(path));
  std::vector<Calibration> all;
  try {
    for (const json& one : json::parse(text)) all.push_back(FromJson(one));
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat(path, " is damaged (", e.what(), "); remove it and run `shoal calibrate`"));
  }
  return all;
}

absl::StatusOr<Calibration> FindCalibration(const std::string& path, const CalibrationKey& key, CalibrationFile file) {
  auto all = ReadCalibrations(path);
  if (!all.ok() && !absl::IsNotFound(all.status())) return all.status();
  std::vector<std::string> others;
  if (all.ok()) {
    for (const Calibration& c : *all) {
      CalibrationKey wanted = key;
      if (wanted.hosts.empty()) wanted.hosts = c.key.hosts;
      if (c.key == wanted) return c;
      others.push_back(c.key.Text());
    }
  }
  const std::string how = absl::StrCat(
      "make one: ", key.ranks > 1 ? absl::StrCat("mpirun -n ", key.ranks, " --bind-to none ") : "",
      "shoal calibrate --threads ", key.threads, " --compute ", config::RuntimeConfig::Compute_Name(key.compute));
  if (file == CalibrationFile::kNamed && all.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("runtime.calibration ", path, " is of ",
                                                      others.empty() ? "nothing" : absl::StrJoin(others, "; of "),
                                                      "; this run is of ", key.Text(), "; ", how, " --out ", path));
  }
  return absl::NotFoundError(absl::StrCat("no calibration of ", key.Text(), "; ", how));
}

std::string ExchangeText(const ExchangeCosts& costs) { return ToJson(costs).dump(); }

absl::StatusOr<ExchangeCosts> ParseExchange(const std::string& text) {
  try {
    return ExchangeFrom(json::parse(text));
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("costs of collectives are damaged: ", e.what()));
  }
}

absl::Status WriteCalibration(const std::string& path, const Calibration& calibration) {
  auto all = ReadCalibrations(path);
  if (!all.ok() && !absl::IsNotFound(all.status())) return all.status();
  json out = json::array({ToJson(calibration)});
  if (all.ok()) {
    for (const Calibration& c : *all) {
      if (!(c.key == calibration.key)) out.push_back(ToJson(c));
    }
  }
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(std::filesystem::path(path).parent_path().string()));
  return WriteFileAtomically(PosixFiles(), path, out.dump(1) + "\n");
}

}  // namespace shoal
