#include "runtime/obs/step_record.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/str.h"

namespace shoal {

namespace {

const char* UnitName(const StepRecord& r) { return r.unit == StepRecord::Unit::kTokens ? "tok" : "img"; }

}  // namespace

std::string StepLine(const StepRecord& r) {
  const double rate = r.seconds > 0 ? static_cast<double>(r.units) / r.seconds : 0;
  const auto percent = [&](double seconds) {
    return r.seconds > 0 ? static_cast<int>(std::lround(100 * seconds / r.seconds)) : 0;
  };
  std::string line = absl::StrFormat("step %d", r.step);
  if (r.total_steps > 0) absl::StrAppendFormat(&line, "/%d", r.total_steps);
  absl::StrAppendFormat(
      &line,
      " | loss %.4f | gnorm %.2f | lr %.1e | %s %s/s | %.0f ms (fwd %d bwd %d comm-exposed %d opt %d data %d %%)",
      r.loss, r.grad_norm, r.learning_rate, HumanCount(rate), UnitName(r), r.seconds * 1e3, percent(r.forward_seconds),
      percent(r.backward_seconds), percent(r.comm_exposed_seconds), percent(r.optimizer_seconds),
      percent(r.data_seconds));
  constexpr double kGiB = 1 << 30;
  if (r.memory_predicted_bytes > 0) {
    absl::StrAppendFormat(&line, " | mem %.1f/%.1f GiB", static_cast<double>(r.memory_bytes) / kGiB,
                          static_cast<double>(r.memory_predicted_bytes) / kGiB);
  } else {
    absl::StrAppendFormat(&line, " | mem %.1f GiB", static_cast<double>(r.memory_bytes) / kGiB);
  }
  if (!r.sequence_plan.empty()) {
    absl::StrAppendFormat(&line, " | plan %s", r.sequence_plan);
    if (r.plan_predicted_seconds > 0) absl::StrAppendFormat(&line, " %.0f ms", r.plan_predicted_seconds * 1e3);
    absl::StrAppendFormat(&line, ", gap <= %.1f %%", 100 * r.plan_gap);
  }
  if (r.batch > 0) absl::StrAppendFormat(&line, " | batch %d", r.batch);
  if (!std::isnan(r.noise_scale)) absl::StrAppendFormat(&line, " (noise scale %.4g samples)", r.noise_scale);
  if (r.mfu > 0) absl::StrAppendFormat(&line, " | mfu %.0f%%", 100 * r.mfu);
  absl::StrAppendFormat(&line, " | ETA %s", HumanDuration(r.eta_seconds));
  if (r.allocation_left_seconds >= 0)
    absl::StrAppendFormat(&line, " | allocation left %s", HumanDuration(r.allocation_left_seconds));
  if (r.straggler == StepRecord::Straggler::kYes)
    absl::StrAppendFormat(&line, " | slowest %s (%.0f%% of steps)", r.slowest_rank, 100 * r.slowest_share);
  if (!r.skip_reason.empty()) absl::StrAppendFormat(&line, " | SKIPPED: %s", r.skip_reason);
  if (std::isfinite(r.accuracy)) absl::StrAppendFormat(&line, " | accuracy %.2f%%", 100 * r.accuracy);
  if (std::isfinite(r.eval_loss)) absl::StrAppendFormat(&line, " | held-out loss %.4f", r.eval_loss);
  if (std::isfinite(r.eval_accuracy)) absl::StrAppendFormat(&line, " accuracy %.2f%%", 100 * r.eval_accuracy);
  return line;
}

std::string StepJson(const StepRecord& r) {
  const auto number = [](double v) { return std::isfinite(v) ? nlohmann::json(v) : nlohmann::json(); };
  nlohmann::json j = {{"step", r.step},
                      {"loss", number(r.loss)},
                      {"grad_norm", number(r.grad_norm)},
                      {"learning_rate", r.learning_rate},
                      {"seconds", r.seconds},
                      {r.unit == StepRecord::Unit::kTokens ? "tokens" : "images", r.units},
                      {"forward_seconds", r.forward_seconds},
                      {"backward_seconds", r.backward_seconds},
                      {"comm_exposed_seconds", r.comm_exposed_seconds},
                      {"optimizer_seconds", r.optimizer_seconds},
                      {"data_seconds", r.data_seconds},
                      {"memory_bytes", r.memory_bytes},
                      {"memory_predicted_bytes", r.memory_predicted_bytes},
                      {"mfu", r.mfu},
                      {"lengths", r.lengths}};
  if (r.predicted_seconds > 0) j["predicted_seconds"] = r.predicted_seconds;
  if (r.batch > 0) {
    j["batch"] = r.batch;
    j["samples"] = r.samples;
  }
  if (!std::isnan(r.noise_scale)) j["noise_scale"] = number(r.noise_scale);
  if (!std::isnan(r.codec_error)) j["codec_error"] = number(r.codec_error);
  if (r.reduced_bytes > 0) {
    j["reduced_bytes"] = r.reduced_bytes;
    j["reduce_exposed_seconds"] = r.reduce_exposed_seconds;
  }
  if (r.compression_plan >= 0) j["compression_plan"] = r.compression_plan;
  if (r.reduce_predicted_seconds >= 0) j["reduce_predicted_seconds"] = r.reduce_predicted_seconds;
  if (!r.sequence_plan.empty()) {
    j["sequence_plan"] = r.sequence_plan;
    j["plan_predicted_seconds"] = r.plan_predicted_seconds;
    j["plan_gap"] = r.plan_gap;
    j["plan_seconds"] = r.plan_seconds;
    j["plan_exposed_seconds"] = r.plan_exposed_seconds;
    j["plan_exchange_seconds"] = r.plan_exchange_seconds;
  }
  if (!r.skip_reason.empty()) j["skipped"] = r.skip_reason;
  if (!r.slowest_rank.empty()) {
    j["slowest_rank"] = r.slowest_rank;
    j["slowest_share"] = r.slowest_share;
    j["straggler"] = r.straggler == StepRecord::Straggler::kYes;
  }
  if (std::isfinite(r.accuracy)) j["accuracy"] = r.accuracy;
  if (std::isfinite(r.eval_loss)) j["eval_loss"] = r.eval_loss;
  if (std::isfinite(r.eval_accuracy)) j["eval_accuracy"] = r.eval_accuracy;
  for (const auto& s : r.spectra)
    j["spectral"][s.matrix] = {{"sigma", number(s.sigma)}, {"rms_gain", number(s.rms_gain)}};
  return j.dump();
}

}  // namespace shoal
