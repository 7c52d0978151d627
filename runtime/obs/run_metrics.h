// What a run measured, read back from its metrics.jsonl: for reports and sweeps.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/obs/svg_plot.h"

namespace shoal {

// The objects of a text of JSON lines, but for those that are damaged: `whole` is false of them, or throws as it looks.
struct JsonLines {
  std::vector<nlohmann::json> whole;
  int damaged = 0;
  // For a page; empty where none is damaged.
  std::string Note(const std::string& file) const;
};
JsonLines ReadJsonLines(const std::string& text, bool (*whole)(const nlohmann::json&));

// The records of `run_dir`, one per step and each with "step"; damaged lines are passed over. NotFound when there is
// none.
absl::StatusOr<std::vector<nlohmann::json>> ReadMetrics(const std::string& run_dir);

// A field over the steps, where it is a number.
Series MetricSeries(const std::vector<nlohmann::json>& records, const char* field, const std::string& name,
                    double scale = 1);
// "tokens" or "images": what the run's steps count.
std::string MetricUnit(const std::vector<nlohmann::json>& records);
// Tokens or images per second over the steps.
Series RateSeries(const std::vector<nlohmann::json>& records, const std::string& name);

// A run in numbers; NaN: it has no such number.
struct RunSummary {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  int64_t steps = 0;
  std::string unit;             // "tokens" or "images"
  double units = 0;             // of all steps
  double seconds = 0;           // in steps
  double step_seconds = kNone;  // median
  double rate = kNone;          // units / seconds
  double exposed = 0;           // share of the step time, 0 to 1
  // Of reducing gradients, mean of the steps: what rank 0 sends, and what of the time backward does not hide.
  double reduced_bytes = kNone, reduce_exposed_seconds = kNone;
  double last_loss = kNone;
  double end_loss = kNone;  // training loss, mean of the last tenth of the steps: one batch's is noise
  double held_out = kNone, best_held_out = kNone, held_out_step = kNone;  // the last, the least; where the last was
  double accuracy = kNone;                                                // on what was held out, the last
};
RunSummary Summarise(const std::vector<nlohmann::json>& records);

}  // namespace shoal
