// The training loop of one rank: data -> micro-batches -> reductions -> guards -> optimizer -> records, evaluation,
// checkpoints.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "launch/job.pb.h"
#include "launch/rank_log.h"
#include "runtime/base/rank_context.h"
#include "runtime/obs/span.h"
#include "runtime/obs/step_record.h"

namespace shoal {

// What the caller gets back on every rank.
struct TrainOutcome {
  enum class End { kFinished, kStopped } end = End::kFinished;
  int64_t step = 0;
  double last_loss = 0;
  double eval_loss = 0;      // NaN when nothing was held out
  double eval_accuracy = 0;  // NaN unless the model classifies
};

// Whether a run that resumes starts its optimizer's moments anew; weights, averages, batch and position stay.
enum class ResetOptimizer : uint8_t { kNo, kYes };

struct TrainerOptions {
  config::Job job;      // resolved (ResolveJob), compute settled: every rank has the same
  std::string run_dir;  // exists, locked by the launcher's rank 0; empty: nothing is written (tests, benchmarks)
  enum class Console : uint8_t { kStepLines, kQuiet } console = Console::kStepLines;
  ResetOptimizer reset_optimizer = ResetOptimizer::kNo;
  RankLog* log = nullptr;                       // this rank's log; null: none; not owned
  std::vector<double>* losses = nullptr;        // every step's loss, for tests and benchmarks; not owned
  std::vector<double>* step_seconds = nullptr;  // every step's time; not owned
  std::vector<double>* data_seconds = nullptr;  // of it, what was waited for data; not owned
  std::vector<StepRecord>* records = nullptr;   // all that is known of every step; not owned
  double* first_step_at = nullptr;              // SteadySeconds() when the first step begins; not owned
  double* predicted_seconds = nullptr;  // of the first step, where a calibration fits; else untouched; not owned
  std::vector<std::string> turns = {};  // of benchmarks: codecs that planned ones take turns with
  SpanSink* spans = nullptr;            // what this rank does, op by op; not owned
  // Bytes of all weights at the end; not owned. With parallel.zero 3, which gathers them, on all ranks or none.
  std::string* weights = nullptr;
};

// Trains until the configured duration or a stop request; collective over `world`. Resumes from the run directory's
// newest good checkpoint. Errors carry the exit code's class (runtime/base/status.h); communication errors leave
// `world` poisoned.
absl::StatusOr<TrainOutcome> Train(RankContext& rank, Communicator& world, const TrainerOptions& options);

}  // namespace shoal
