#include "runtime/obs/run_metrics.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file_system.h"

namespace shoal {

using nlohmann::json;

namespace {

// NaN for what is not there or not finite (null).
double Number(const json& record, const char* field) {
  const auto at = record.find(field);
  return at != record.end() && at->is_number() ? at->get<double>() : RunSummary::kNone;
}

// Over the records that have the field; NaN: none has.
double Mean(const std::vector<json>& records, const char* field) {
  double sum = 0, count = 0;
  for (const json& r : records) {
    const double value = Number(r, field);
    if (std::isfinite(value)) sum += value, ++count;
  }
  return count > 0 ? sum / count : RunSummary::kNone;
}

// Fields that are read as what they are: numbers where they are there.
bool IsRecord(const json& record) {
  for (const char* field :
       {"seconds", "tokens", "images", "samples", "forward_seconds", "backward_seconds", "comm_exposed_seconds",
        "optimizer_seconds", "data_seconds", "memory_bytes", "memory_predicted_bytes", "reduced_bytes",
        "reduce_exposed_seconds", "reduce_predicted_seconds"}) {
    if (record.contains(field) && !record[field].is_number()) return false;
  }
  record.value("lengths", std::vector<int>());
  return record.at("step").is_number();
}

}  // namespace

JsonLines ReadJsonLines(const std::string& text, bool (*whole)(const json&)) {
  JsonLines lines;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    json object = json::parse(line.begin(), line.end(), nullptr, false);
    try {
      if (object.is_object() && whole(object)) {
        lines.whole.push_back(std::move(object));
        continue;
      }
    } catch (const json::exception&) {  // a field that is not there, or of another type
    }
    ++lines.damaged;
  }
  return lines;
}

std::string JsonLines::Note(const std::string& file) const {
  if (damaged == 0) return "";
  return absl::StrCat("<p>", damaged, " damaged ", damaged == 1 ? "line of " : "lines of ", file, " left out.</p>");
}

absl::StatusOr<std::vector<json>> ReadMetrics(const std::string& run_dir) {
  const auto text = PosixFiles().Read(run_dir + "/metrics.jsonl");
  if (!text.ok()) return absl::NotFoundError(absl::StrCat(run_dir, " has no metrics: ", text.status().message()));
  std::vector<json> records = ReadJsonLines(*text, IsRecord).whole;
  if (records.empty()) return absl::NotFoundError(absl::StrCat(run_dir, "/metrics.jsonl has no step yet"));
  return records;
}

Series MetricSeries(const std::vector<json>& records, const char* field, const std::string& name, double scale) {
  Series s{name, {}};
  for (const json& r : records) {
    if (const double value = Number(r, field); std::isfinite(value))
      s.points.emplace_back(r["step"].get<double>(), value * scale);
  }
  return s;
}

std::string MetricUnit(const std::vector<json>& records) {
  return !records.empty() && records.front().contains("images") ? "images" : "tokens";
}

Series RateSeries(const std::vector<json>& records, const std::string& name) {
  const std::string unit = MetricUnit(records);
  Series s{name, {}};
  for (const json& r : records) {
    const double seconds = Number(r, "seconds");
    if (seconds > 0) s.points.emplace_back(r["step"].get<double>(), r.value(unit, 0.0) / seconds);
  }
  return s;
}

RunSummary Summarise(const std::vector<json>& records) {
  RunSummary s;
  if (records.empty()) return s;
  s.unit = MetricUnit(records);
  s.steps = records.back()["step"].get<int64_t>();
  double exposed = 0;
  std::vector<double> times;
  for (const json& r : records) {
    const double seconds = r.value("seconds", 0.0);
    s.seconds += seconds;
    s.units += r.value(s.unit, 0.0);
    exposed += r.value("comm_exposed_seconds", 0.0);
    times.push_back(seconds);
    if (const double held_out = Number(r, "eval_loss"); std::isfinite(held_out)) {
      s.held_out = held_out;
      s.held_out_step = r["step"].get<double>();
      s.best_held_out = std::fmin(s.best_held_out, held_out);
    }
    if (const double accuracy = Number(r, "eval_accuracy"); std::isfinite(accuracy)) s.accuracy = accuracy;
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  s.step_seconds = times[times.size() / 2];
  if (s.seconds > 0) s.rate = s.units / s.seconds, s.exposed = exposed / s.seconds;
  s.reduced_bytes = Mean(records, "reduced_bytes");
  s.reduce_exposed_seconds = Mean(records, "reduce_exposed_seconds");
  s.last_loss = Number(records.back(), "loss");
  // A loss that is not finite stays so in the mean: that run has no loss at its end.
  const size_t tenth = std::max<size_t>(1, records.size() / 10);
  double sum = 0;
  for (size_t i = records.size() - tenth; i < records.size(); ++i) sum += Number(records[i], "loss");
  s.end_loss = sum / static_cast<double>(tenth);
  return s;
}

}  // namespace shoal
