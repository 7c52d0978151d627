// Calibration: how long each op takes on this machine, so that a step's time is known before it runs. Measured by
// `shoal calibrate`, kept in a file, read by `plan` and the trainer.
//
// An op's time is call + flop * FLOPs + byte * bytes, each rate >= 0, fitted by relative least squares to its calls in
// real training steps of several small models.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/exchange_costs.h"
#include "launch/job.pb.h"
#include "runtime/obs/span.h"
#include "runtime/ops/op_context.h"

namespace shoal {

struct OpRate {
  double call = 0, flop = 0, byte = 0;  // seconds per each
  double Seconds(const OpCost& cost) const { return call * cost.calls + flop * cost.flops + byte * cost.bytes; }
};

// What a calibration holds for: rates depend on the cores of a rank, and on the ranks that share its memory and links.
struct CalibrationKey {
  std::string hosts;  // HostsText of the ranks; empty, of a key that is looked for: whichever
  int ranks = 1, threads = 1;
  config::RuntimeConfig::Compute compute = config::RuntimeConfig::FP32;
  std::string Text() const;  // "2 ranks x 1 thread, FP32, on node7"
  bool operator==(const CalibrationKey& other) const = default;
};

// Where ranks are, in their order: "node7" if all are there, else "node7 x 2, node8 x 2".
std::string HostsText(const std::vector<std::string>& host_of_rank);
// The same of a world's ranks. Collective.
absl::StatusOr<std::string> HostsOf(Communicator& world);

struct Calibration {
  CalibrationKey key;
  double product_peak = 0;            // FLOP/s of one rank's square products then (MeasureProductPeak)
  double step_seconds = 0;            // of a step outside its ops
  std::map<std::string, OpRate> ops;  // "Matmul.NT", "GeluFwd", "optimizer", ...
  ExchangeCosts exchange;             // of collectives and codecs; ranks 0: not measured
  // Time of one step. The machine may be slower or faster now than then: times scale with the product peak. NotFound
  // names ops that were not measured.
  absl::StatusOr<double> StepSeconds(const CostSheet& cost, double product_peak_now) const;
};

// Collects the spans of training steps and fits a calibration to them.
class CalibrationFit : public SpanSink {
 public:
  // The first `warmup` steps of every run are not counted; a run ends with EndRun.
  explicit CalibrationFit(int warmup) : warmup_(warmup) {}
  void Add(const Span& span) override;  // of Track::kMain, on one thread
  void EndRun() { steps_ = 0; }
  // `ops` and `step_seconds`.
  Calibration Fit() const;

 private:
  struct Sample {
    OpCost cost;
    double seconds;
  };
  int warmup_, steps_ = 0;
  std::map<std::string, std::vector<Sample>> pending_, samples_;  // by op; pending: of the step under way
  double pending_seconds_ = 0;
  std::vector<double> outside_;  // of each step: its time less its ops'
};

// The user's calibrations: $XDG_CACHE_HOME/shoal/calibration.json, or the same below ~/.cache.
std::string CalibrationPath();
// All calibrations of a file; NotFound when there is none, DataLoss when it is damaged.
absl::StatusOr<std::vector<Calibration>> ReadCalibrations(const std::string& path);
// The newest that fits. NotFound says how to make one. A file that the user named and that is of other machines only is
// refused, with their names and this one's: FailedPrecondition.
enum class CalibrationFile : uint8_t { kUsual, kNamed };
absl::StatusOr<Calibration> FindCalibration(const std::string& path, const CalibrationKey& key,
                                            CalibrationFile file = CalibrationFile::kUsual);
// Costs of collectives and codecs as JSON text, and back; DataLoss when it is damaged.
std::string ExchangeText(const ExchangeCosts& costs);
absl::StatusOr<ExchangeCosts> ParseExchange(const std::string& text);
// Adds `calibration` to the file, in place of one with the same key.
absl::Status WriteCalibration(const std::string& path, const Calibration& calibration);

}  // namespace shoal
