// StepRecord: what is known of one step, for the console line and every sink.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace shoal {

struct StepRecord {
  int64_t step = 0, total_steps = 0;  // total 0: the run's length is in another unit
  double loss = 0, grad_norm = 0, learning_rate = 0;
  double seconds = 0, predicted_seconds = 0;  // wall time of the step; what a calibration said of the first, 0: nothing
  int64_t units = 0;                          // predictions or images of this step, all ranks
  enum class Unit : uint8_t { kTokens, kImages } unit = Unit::kTokens;
  double forward_seconds = 0, backward_seconds = 0, comm_exposed_seconds = 0, optimizer_seconds = 0, data_seconds = 0;
  int64_t memory_bytes = 0, memory_predicted_bytes = 0;  // of rank 0, high-water; predicted 0: unknown
  double mfu = 0;  // share of the peak measured at start (products in compute dtype); 0: unknown
  double eta_seconds = 0;
  std::string slowest_rank;  // "rank 3": who worked longest in this step; empty with one rank
  double slowest_share = 0;  // share of this start's steps in which it was the slowest
  enum class Straggler : uint8_t { kNo, kYes } straggler = Straggler::kNo;  // it holds up the others, and mostly it
  std::vector<int32_t> lengths;
  int64_t batch = 0, samples = 0;  // where the global batch grows: it in its own unit, and its samples; 0: constant
  double noise_scale = std::numeric_limits<double>::quiet_NaN();  // of gradients, in samples; NaN: not measured
  double codec_error =
      std::numeric_limits<double>::quiet_NaN();  // of encoded gradients: ||x - decoded|| / ||x||; NaN: none
  int64_t reduced_bytes = 0;                     // of gradients, encoded or not, that rank 0 sends; 0: to nobody
  int64_t compression_plan = -1;                 // the plan in force; < 0: nothing is planned
  std::string compression_turn = {};             // of benchmarks: the codec that took its place; not in the metrics
  double reduce_exposed_seconds = 0;             // of exposed communication what reductions of gradients are
  double reduce_predicted_seconds = -1;          // what the plan said of it; < 0: nothing
  std::string sequence_plan;                     // "<4,1x4> <2x4>"; empty: sequences are not spread
  double plan_predicted_seconds = 0;             // of the whole step, by the plan's costs
  double plan_gap = 0;                           // share of the plan's time by which it may be beaten
  double plan_seconds = 0;                       // that making it took, beside training
  double plan_exposed_seconds = 0;               // that the step waited for it
  double plan_exchange_seconds = 0;              // its broadcast and agreement, on the rank that waited for none
  std::string skip_reason;                       // empty: the step was taken
  double accuracy =
      std::numeric_limits<double>::quiet_NaN();  // share of the step's images that were classified correctly
  double eval_accuracy = std::numeric_limits<double>::quiet_NaN();
  double eval_loss = std::numeric_limits<double>::quiet_NaN();  // of an evaluation after this step
  double allocation_left_seconds = -1;                          // of a Slurm job; < 0: none
  struct Spectrum {
    std::string matrix;
    double sigma = 0, rms_gain = 0;  // top singular value; ||W||_F / sqrt(out)
  };
  std::vector<Spectrum> spectra;  // of the weights after this step; empty: not measured
};

// `step 120/2000 | loss 3.2145 | gnorm 0.84 | lr 3.0e-04 | 42.1k tok/s | 812 ms (fwd 31 bwd 47 comm-exposed 9 opt 8
// data 1 %) | mem 1.8/2.4 GiB | mfu 38% | ETA 25m`; what is unknown is left out.
std::string StepLine(const StepRecord& record);
// One line of metrics.jsonl, without newline; values that are not finite become null.
std::string StepJson(const StepRecord& record);

}  // namespace shoal
