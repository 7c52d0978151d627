#include "launch/spectra.h"

#include <algorithm>
#include <limits>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/model_setup.h"
#include "launch/optimizer_setup.h"
#include "launch/run_dir.h"
#include "optim/schedule.h"
#include "optim/spectral.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

StepRecord::Spectrum SpectrumOf(ThreadPool& pool, const std::string& name, const Tensor& weight) {
  Tensor matrix = weight;
  if (weight.dtype() != DType::kF32) {
    OpContext ops{.pool = &pool};
    matrix = Tensor::Zeros(weight.shape(), DType::kF32);
    ops::Copy(ops, weight, matrix);
  }
  return {name, TopSingularValue(pool, matrix, {.name = name}), RmsGain(pool, matrix)};
}

// One checkpoint, measured.
struct RunSpectra {
  struct Matrix {
    std::string name;
    SpectralPoint point;
  };
  std::string table;
  std::string unfit;  // why its values enter no fit; "": they do
  std::vector<Matrix> matrices;
};

// Why the law behind the fit says nothing about this run: it is about AdamW's steady state at one rate.
std::string WhyUnfit(const config::Job& job, const Manifest& manifest) {
  if (!job.model().has_transformer()) return "its model has no width that all layers follow";
  if (job.optim().has_reference_batch()) return "its decay per step follows optim.reference_batch";
  const auto counter = [&](const char* name) {
    const auto at = manifest.integers.find(name);
    return at == manifest.integers.end() ? 0 : at->second;
  };
  // Checkpoints do not hold epochs: such a run counts as at its end.
  const RunProgress done{counter("progress.step"), counter("progress.position"), counter("progress.tokens"),
                         std::numeric_limits<double>::infinity()};
  const double factor = ScheduleFactor(job.optim().schedule(), done, job.duration());
  if (factor >= 1) return "";
  return absl::StrFormat(
      "its rate is %.3g of the peak at this step; take optim { schedule { shape: CONSTANT } }, or a checkpoint of WSD "
      "before its decay",
      factor);
}

absl::StatusOr<RunSpectra> Measure(ThreadPool& pool, const std::string& run) {
  SHOAL_ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(run));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, JobOfRun(run, folder));
  SHOAL_ASSIGN_OR_RETURN(const auto model, ModelFor(job));
  SHOAL_ASSIGN_OR_RETURN(const auto optimizer, OptimizerFor(job, *model));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader reader, CheckpointReader::Open(folder));
  RunSpectra spectra;
  spectra.unfit = WhyUnfit(job, reader.manifest());
  const ModelScale scale = ScaleOf(job);
  spectra.table =
      absl::StrFormat("%s: step %d, width %d\n%-40s %-16s %11s %11s %11s %11s\n", folder, reader.manifest().step,
                      scale.width, "matrix", "shape", "sigma", "rms gain", "rate", "decay");
  for (const Param* param : model->params()) {
    if (!IsHiddenMatrix(*param)) continue;
    SHOAL_ASSIGN_OR_RETURN(const Tensor weight, reader.Read(param->name));
    const StepRecord::Spectrum spectrum = SpectrumOf(pool, param->name, weight);
    const GroupTable& groups = optimizer->groups();
    const ParamOptions& options = groups.rows[static_cast<size_t>(param->id)];
    const UpdateTraits& rule = groups.RuleOf(options);
    const double rate = options.learning_rate_factor * job.optim().learning_rate();
    absl::StrAppendFormat(&spectra.table, "%-40s %-16s %11.5g %11.5g %11.3g %11.3g\n", param->name,
                          ShapeString(param->shape), spectrum.sigma, spectrum.rms_gain, rate, options.weight_decay);
    if (rule.width != UpdateTraits::Width::kScaled)
      spectra.unfit = absl::StrCat(groups.traits.name, " updates '", param->name, "', and the fit is AdamW's");
    // The law has decay times rate; INDEPENDENT decay is that product.
    const bool coupled = rule.decay.value_or(config::COUPLED_TO_RATE) == config::COUPLED_TO_RATE;
    spectra.matrices.push_back({param->name,
                                {.width = scale.width,
                                 .sigma = spectrum.sigma,
                                 .learning_rate = rate,
                                 .weight_decay = coupled ? options.weight_decay : options.weight_decay / rate,
                                 .steps = reader.manifest().step}});
  }
  return spectra;
}

std::string FitText(absl::Span<const RunSpectra> runs) {
  std::vector<std::string> kinds;  // in the model's order
  std::map<std::string, std::vector<SpectralPoint>> points;
  for (const RunSpectra& run : runs) {
    for (const auto& [name, point] : run.matrices) {
      const std::string kind = NamePattern(name);
      if (points[kind].empty()) kinds.push_back(kind);
      points[kind].push_back(point);
    }
  }
  std::string text = absl::StrFormat(
      "sigma ~ (rate / decay)^(1/2) width^a; it does not grow where decay ~ width^p, p = 2a - 1\n%-40s %7s %17s %17s\n",
      "kind of matrix", "values", "a", "p");
  double sum = 0, least = std::numeric_limits<double>::infinity(), most = -least;
  int fitted = 0;
  for (const std::string& kind : kinds) {
    const auto fit = FitWidthExponent(points[kind]);
    absl::StrAppendFormat(&text, "%-40s %7d ", kind, points[kind].size());
    if (!fit.ok()) {
      absl::StrAppend(&text, "no fit: ", fit.status().message(), "\n");
      continue;
    }
    absl::StrAppendFormat(&text, "%8.3f +- %5.3f %8.3f +- %5.3f\n", fit->a, fit->spread, fit->decay_exponent,
                          2 * fit->spread);
    sum += fit->decay_exponent;
    least = std::min(least, fit->decay_exponent);
    most = std::max(most, fit->decay_exponent);
    ++fitted;
  }
  if (fitted > 0) {
    absl::StrAppendFormat(
        &text, "mean p over kinds %.3f (%.3f to %.3f): optim { width_rule { matrix { weight_decay: %.3f } } }\n",
        sum / fitted, least, most, sum / fitted);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::vector<StepRecord::Spectrum>> MeasureSpectra(absl::Span<const Param* const> params,
                                                                 DataParallel& dp, Communicator& ranks,
                                                                 ThreadPool& pool) {
  std::vector<StepRecord::Spectrum> spectra;
  std::vector<double> values;  // sigma and gain of each, zeros where another rank measures it
  for (const Param* param : params) {
    if (!IsHiddenMatrix(*param)) continue;
    const bool mine = static_cast<int>(spectra.size()) % ranks.size() == ranks.rank();
    SHOAL_ASSIGN_OR_RETURN(const Tensor weight, dp.WholeWeight(*param));
    spectra.push_back(mine ? SpectrumOf(pool, param->name, weight) : StepRecord::Spectrum{param->name});
    values.insert(values.end(), {spectra.back().sigma, spectra.back().rms_gain});
  }
  SHOAL_RETURN_IF_ERROR(dp.ReleaseWeights());
  SHOAL_ASSIGN_OR_RETURN(values, AllReduceValues(ranks, std::move(values), ReduceOp::kSum, {.tag = "spectra"}));
  for (size_t i = 0; i < spectra.size(); ++i) {
    spectra[i].sigma = values[2 * i];
    spectra[i].rms_gain = values[2 * i + 1];
  }
  return spectra;
}

absl::StatusOr<std::string> InspectSpectra(absl::Span<const std::string> runs) {
  ThreadPool pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  std::vector<RunSpectra> measured;
  std::string text;
  for (const std::string& run : runs) {
    SHOAL_ASSIGN_OR_RETURN(measured.emplace_back(), Measure(pool, run));
    absl::StrAppend(&text, measured.back().table);
  }
  if (runs.size() == 1) return text;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (!measured[i].unfit.empty()) absl::StrAppend(&text, "no fit with ", runs[i], ": ", measured[i].unfit, "\n");
  }
  const bool fits = std::all_of(measured.begin(), measured.end(), [](const RunSpectra& m) { return m.unfit.empty(); });
  return fits ? text + FitText(measured) : text;
}

}  // namespace shoal
