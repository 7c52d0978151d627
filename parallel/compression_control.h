// CompressionControl: measures the errors of all codecs in training, has plans made of them, and puts them into force.
//
//   exact until warmup_steps; in the table_steps steps that end lead_steps before, every rank adds up the squared
//   errors that each option would make of what it encodes, as a worker and as an owner -> one all-reduce -> rank 0
//   plans on a thread of its own while training goes on -> at the activation step it broadcasts the plan, and all take
//   it up. Again soon after a new plan, when its own effect on times is known, and else every replan_every_steps. In
//   the first ramp_steps it is a quarter of them, and plans may spend one to four quarters of the budget.
//
// Error of an option: with error feedback a code that leaves the share s of the squares it is given leaves, of
// gradients that do not depend on each other, s / (1 - s) of theirs in the long run, and that is what a plan counts,
// layer by layer: the error of one step would hide that residuals grow. Budget: `error_budget` times the sum that
// `codec` for all would make, of the same tables (research/lgreco.md §6.2), in the measure that `error_measure` says.
// No layer's code may leave more than most_layer_error of it. What codes really leave is followed step by step: 10 %
// more than the budget for 20 steps tightens what plans may spend, on the last table, and less than half of it for as
// long loosens that again; four times the squared error for 3 steps falls back to `codec` for all, and errors are
// measured anew. What factors leave of each rank's matrices is no measure of the sum's error, but if it grows by half
// since the plan came into force, errors are measured anew. A table with a NaN, or a budget that nothing meets, leaves
// the plan as it is. A new plan must be worth 2 %.
#pragma once

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/compression_planner.h"
#include "comm/exchange_costs.h"
#include "parallel/data_parallel.h"
#include "parallel/gradient_codecs.h"
#include "parallel/mesh.h"
#include "parallel/state.h"

namespace shoal {

// A plan as it is broadcast, logged to plans/compression.jsonl and kept in checkpoints.
struct LayerPlan {
  int64_t id = 0;               // 0: exact, before there was one
  int64_t first_step = 0;       // that it is in force
  std::vector<int> option;      // of each planned layer, into GradientCodecs::options
  double relative_error = 0;    // estimate of |what waits| / |gradients|, in the error measure
  double relative_budget = 0;   // likewise, of the budget
  double coded_budget = 0;      // likewise, of layers that travel as bytes, before it is tightened; 0: none does
  double cost = 0, bound = 0;   // bytes, or seconds until the last bucket is there
  double uniform_cost = 0;      // of the uniform default
  double exposed_seconds = -1;  // predicted; < 0: LGRECO_BYTES does not know
  double bytes = 0, uniform_bytes = 0, plain_bytes = 0;  // of codes, of the default's, of f32
  std::string notes;
};

class CompressionControl : public Stateful {
 public:
  // `config` is of a planned mode; all arguments outlive it. `costs` only where the mode is LGRECO_TIME.
  CompressionControl(const config::CompressionConfig& config, const std::vector<const Param*>& params,
                     const GradientCodecs& codecs, DataParallel& dp, Mesh& mesh, int zero_stage, ExchangeCosts costs);
  ~CompressionControl() override;

  // Before DataParallel::BeginMicroBatch of step `step` (1 is the first). Returns what is new, for the log: empty, or a
  // plan that comes into force. Collective at activation steps.
  absl::StatusOr<std::string> BeginStep(int64_t step);
  // After its reductions: DataParallel's errors of codes and factors, summed over ranks. kSkipped: nothing of the step
  // counts. Collective where a table is whole.
  enum class Outcome : uint8_t { kTaken, kSkipped };
  absl::Status EndStep(int64_t step, const RunErrors& codes, const RunErrors& factors, Outcome outcome);

  const LayerPlan& plan() const { return plan_; }
  // What ranks compare of it: "plan 3 #a0b1...", its id and a hash of all of it.
  std::string PlanMark() const;
  // For benchmarks, whose machine is not equally fast for long: once there is a plan, every second step takes one of
  // these options for all layers in its place, one after the other. NotFound: no such option, or one of factors.
  absl::Status TakeTurns(absl::Span<const std::string> names);
  // What took the plan's place in the step that began last; empty: nothing did.
  std::string turn() const { return turn_ == nullptr ? "" : std::string(turn_->name()); }
  // One line of plans/compression.jsonl: the plan, with each layer's name, codec and bits per element.
  std::string PlanJson() const;

  // Plan, pending plan, tables and what is followed: a resumed run plans on as if it had never stopped, but that
  // LGRECO_TIME measures the times of steps anew. State of other layers or options is left alone and planned anew.
  void VisitState(StateVisitor& visitor) override;

 private:
  struct Table {
    // [layer][options + 3]: squared error of every option, then sums of squares of what is encoded, of the gradients in
    // it, and of their sum over ranks (where factors are among the options). Each step's are relative to the sum of its
    // layers, so that a step of large gradients counts no more than others.
    std::vector<double> rows;
    int64_t steps = 0;
  };
  struct Times {
    std::vector<double> ready;  // of each bucket, on the latest rank
    double backward_end = 0, busy = 0;
    double waited = 0;  // for reductions once backward was over; this rank
  };
  bool Observes(int64_t step) const { return step >= observe_from_ && step < observe_from_ + config_.table_steps(); }
  bool TimeMode() const { return config_.mode() == config::CompressionConfig::LGRECO_TIME; }
  ExchangeCosts::Half half() const {
    return zero_stage_ == 0 ? ExchangeCosts::Half::kAll : ExchangeCosts::Half::kScatter;
  }
  size_t width() const { return codecs_.options.size() + 3; }
  void AddRow(int layer, const CodecInput& input);
  enum class Purpose : uint8_t { kTrain, kMeasure };
  void SetCodecs(Purpose purpose);
  void AddFactorErrors();
  absl::Status FinishTable(int64_t step);
  std::vector<double> Shares(const Table& table, size_t layer) const;
  double WeightOf(const Table& table, size_t layer) const;
  CompressionProblem ProblemOf(const Table& table, double tightness) const;
  OverlapProblem OverlapOf(CompressionProblem layers) const;
  void CorrectCosts();
  void StartPlanning(int64_t first_step);
  LayerPlan Planned(const Table& table, double tightness, double ramp) const;
  int64_t RampStage() const { return config_.ramp_steps() / 4; }
  double Ramp(int64_t first_step) const;
  std::string PendingText();
  void PutIntoForce(int64_t step);
  void FollowCodes(const RunErrors& codes, int64_t step);
  void FollowFactors(const RunErrors& factors, int64_t step);

  const config::CompressionConfig& config_;
  const std::vector<const Param*>& params_;
  const GradientCodecs& codecs_;
  DataParallel& dp_;
  Mesh& mesh_;
  const int zero_stage_;
  ExchangeCosts costs_;
  std::vector<int> layer_of_;  // by Param::id; -1: exempt
  LayerPlan plan_;
  std::vector<double> step_rows_;  // of the step under way, of this rank; as a table's, but as they are
  Table mine_, table_;             // under way, of this rank; the last whole one, of all
  Times times_sum_, times_;
  int64_t times_steps_ = 0;
  double exchange_factor_ = 1, codec_factor_ = 1;  // measured over predicted
  int64_t observe_from_ = 0, activate_at_ = -1;    // -1: no plan is pending
  std::future<std::string> planning_;              // rank 0's
  std::string pending_;                            // its result, once asked for; or from a checkpoint
  double tightness_ = 1, followed_ = 0;  // share of the budget that plans may spend; EMA of the relative squared error
  int64_t over_ = 0, far_over_ = 0;      // steps in a row; over_: or so far below a tightened budget
  double factors_followed_ = 0, factors_at_first_ = 0;
  std::string news_;  // to be told at the next step
  std::vector<const Codec*> turns_;
  const Codec* turn_ = nullptr;
};

}  // namespace shoal
