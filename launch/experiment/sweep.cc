#include "launch/experiment/sweep.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launch/config_loader.h"
#include "launch/experiment/axes.h"
#include "launch/experiment/run_name.h"
#include "launch/resolve.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr int64_t kMostRuns = 10000;

class SweepLoader {
 public:
  explicit SweepLoader(const SweepArgs& args) : args_(args) {}

  absl::StatusOr<Sweep> Load() {
    SHOAL_RETURN_IF_ERROR(ReadExperiment());
    axes_ = ReadAxes(sweep_.config, args_.file, places_, errors_);
    CheckNumbers();
    CheckPlot();
    ReadBase();
    SHOAL_RETURN_IF_ERROR(errors_.Result());
    TryPoints();
    SHOAL_RETURN_IF_ERROR(errors_.Result());
    SHOAL_RETURN_IF_ERROR(Expand());
    return std::move(sweep_);
  }

 private:
  absl::Status ReadExperiment() {
    auto text = PosixFiles().Read(args_.file);
    if (!text.ok()) return absl::InvalidArgumentError(absl::StrCat("experiment ", text.status().message()));
    ParseTextConfig(*text, args_.file, sweep_.config, errors_, places_);
    for (const std::string& override : args_.overrides)
      ApplySet(override, absl::StrCat("--sweep ", override), sweep_.config, errors_, places_);
    for (const std::string& point : args_.points)
      AddPoint(point, absl::StrCat("--point ", point), sweep_.config, errors_, places_);
    SHOAL_RETURN_IF_ERROR(errors_.Result());
    const auto& e = sweep_.config;
    sweep_.folder = !args_.folder.empty() ? args_.folder : e.has_folder() ? e.folder() : "runs/" + e.name();
    while (sweep_.folder.size() > 1 && sweep_.folder.back() == '/') sweep_.folder.pop_back();
    return absl::OkStatus();
  }

  std::string Place(const std::string& field) const { return PlaceOf(field, args_.file, places_); }

  void CheckNumbers() {
    const auto& e = sweep_.config;
    std::vector<std::string> seeds, ranks;
    for (const uint64_t seed : e.seeds()) seeds.push_back(absl::StrCat(seed));
    for (int i = 0; i < e.ranks_size(); ++i) {
      ranks.push_back(absl::StrCat(e.ranks(i)));
      if (e.ranks(i) < 1)
        errors_.Add(Place(absl::StrCat("ranks[", i, "]")),
                    absl::StrCat("ranks is ", e.ranks(i), "; it needs 1 or more"));
    }
    CheckUnique("seeds", "seeds", seeds, args_.file, places_, errors_);
    CheckUnique("ranks", "ranks", ranks, args_.file, places_, errors_);
    if (e.has_jobs_at_once() && e.jobs_at_once() < 1)
      errors_.Add(Place("jobs_at_once"), absl::StrCat("jobs_at_once is ", e.jobs_at_once(), "; it needs 1 or more"));
    for (const AxisSteps& axis : axes_) sweep_.dimensions.push_back({axis.name, axis.labels});
    if (!ranks.empty()) sweep_.dimensions.push_back({"ranks", ranks});
  }

  void CheckPlot() {
    std::vector<std::string> names;
    for (const Dimension& d : sweep_.dimensions) names.push_back(d.name);
    const auto known = [&](const std::string& field, const std::string& name) {
      if (std::count(names.begin(), names.end(), name) == 0) errors_.Add(Place(field), NoSuchAxis(name, names));
    };
    const auto& plot = sweep_.config.plot();
    if (plot.has_x()) known("plot.x", plot.x());
    for (const Dimension& d : sweep_.dimensions) {
      const bool is_x = plot.has_x() ? d.name == plot.x() : &d == &sweep_.dimensions[0];
      if (!is_x || plot.x_scale() != config::SweepPlot::LOG) continue;
      const auto numbers = Numbers(d);
      if (numbers.empty() || *std::min_element(numbers.begin(), numbers.end()) <= 0) {
        errors_.Add(Place("plot.x_scale"),
                    absl::StrCat("plot.x_scale is LOG, and not all of ", d.name, " are numbers above 0; take LINEAR"));
      }
    }
    for (int i = 0; i < plot.series_size(); ++i) {
      const std::string field = absl::StrCat("plot.series[", i, "]");
      known(field, plot.series(i));
      if (plot.has_x() && plot.series(i) == plot.x())
        errors_.Add(Place(field), absl::StrCat("'", plot.x(), "' is the x axis; it cannot be a series too"));
    }
  }

  void ReadBase() {
    const auto& e = sweep_.config;
    if (!e.has_job()) return errors_.Add(args_.file, "job is not given; write job: \"job.textproto\"");
    const size_t slash = args_.file.rfind('/');
    const bool beside = slash != std::string::npos && !absl::StartsWith(e.job(), "/");
    auto loaded = LoadJob(beside ? args_.file.substr(0, slash + 1) + e.job() : e.job(), {});
    if (!loaded.ok()) return errors_.Add("", std::string(loaded.status().message()));
    base_ = *std::move(loaded);
    for (int i = 0; i < e.set_size(); ++i) SetBase({e.set(i), Place(absl::StrCat("set[", i, "]"))});
    for (const std::string& set : args_.sets) SetBase({set, absl::StrCat("--set ", set)});
  }
  void SetBase(const Assignment& set) {
    ApplySet(set.text, set.place, base_.job, errors_, base_.places);
    if (set.path() == "name" || (set.path() == "seed" && sweep_.config.seeds_size() > 0))
      errors_.Add(set.place, absl::StrCat("the sweep itself sets ", set.path(), " of its runs"));
  }

  // Every point alone: wrong fields and values, and what would lose another axis's or the command line's field.
  void TryPoints() {
    std::vector<std::pair<std::string, std::string>> earlier;  // path and who set it
    for (const std::string& set : args_.sets) earlier.emplace_back(Assignment{set, ""}.path(), "--set " + set);
    for (const AxisSteps& axis : axes_) {
      const std::string problem =
          axis.field.empty() ? "" : PathProblem(*config::Job::descriptor(), axis.field);  // once, not for every value
      if (!problem.empty()) {
        errors_.Add(axis.field_place, problem);
        continue;
      }
      std::set<std::string> mine;
      for (const auto& sets : axis.steps) {
        LoadedJob job = base_;
        for (const Assignment& set : sets) {
          ApplySet(set.text, set.place, job.job, errors_, job.places);
          const std::string path = set.path();
          mine.insert(path);
          if (path == "name" || path == "seed") {
            errors_.Add(set.place, path == "name" ? "the sweep itself names its runs"
                                                  : "write seeds: [1, 2, 3] instead of an axis over seed");
          }
          for (const auto& [other, who] : earlier) {
            if (Covers(path, other))
              errors_.Add(set.place, absl::StrCat("'", path, "' overrides what ", who, " sets; keep one"));
          }
        }
      }
      for (const std::string& path : mine) earlier.emplace_back(path, absl::StrCat("axis '", axis.name, "'"));
    }
  }

  // Goes through all combinations, the last index fastest.
  static bool Advance(std::vector<size_t>& at, const std::vector<size_t>& sizes) {
    for (size_t d = at.size(); d-- > 0;) {
      if (++at[d] < sizes[d]) return true;
      at[d] = 0;
    }
    return false;
  }

  absl::Status Expand() {
    const auto& e = sweep_.config;
    std::vector<size_t> sizes;
    std::vector<std::vector<std::string>> safe;
    for (const Dimension& d : sweep_.dimensions) {
      sizes.push_back(d.labels.size());
      safe.push_back(SafeLabels(d.labels));
    }
    sizes.push_back(static_cast<size_t>(std::max(1, e.seeds_size())));
    double count = 1;
    for (const size_t size : sizes) count *= static_cast<double>(size);
    if (count > kMostRuns) {
      return absl::InvalidArgumentError(
          absl::StrCat(args_.file, ": the axes make ", count, " runs; a sweep has at most ", kMostRuns));
    }
    std::vector<size_t> at(sizes.size());
    do {
      SweepRun run;
      run.number = static_cast<int>(sweep_.runs.size()) + 1;
      run.at.assign(at.begin(), at.end() - 1);
      std::vector<std::pair<std::string, std::string>> parts;
      for (size_t d = 0; d < run.at.size(); ++d) parts.emplace_back(sweep_.dimensions[d].name, safe[d][at[d]]);
      run.ranks = e.ranks_size() > 0 ? e.ranks(static_cast<int>(at[axes_.size()])) : 1;
      run.seed = e.seeds_size() > 0 ? e.seeds(static_cast<int>(at.back())) : base_.job.seed();
      if (e.seeds_size() > 0) parts.emplace_back("seed", absl::StrCat(run.seed));
      run.name = RunName(parts);
      if (run.name.size() > kLongestRunName) {
        return absl::InvalidArgumentError(
            absl::StrCat(args_.file, ": the name of run ", run.number, ", ", run.name, ", is ", run.name.size(),
                         " bytes long; at most ", kLongestRunName, ". Give axes shorter names, or points with labels"));
      }
      SetJob(run);
      sweep_.runs.push_back(std::move(run));
    } while (Advance(at, sizes));
    return Problems();
  }

  void SetJob(SweepRun& run) {
    LoadedJob loaded = base_;
    for (size_t a = 0; a < axes_.size(); ++a) {
      for (const Assignment& set : axes_[a].steps[run.at[a]])
        ApplySet(set.text, set.place, loaded.job, errors_, loaded.places);
    }
    for (size_t a = 0; a < axes_.size(); ++a) {
      for (const Assignment& set : axes_[a].steps[run.at[a]]) {
        if (!IsSet(loaded.job, set.path()))
          Problem(run, set.place + ": " + set.path() +
                           " is undone by a later axis, which chooses another member of its group");
      }
    }
    loaded.job.set_name(run.name);
    loaded.job.set_seed(run.seed);
    run.job = loaded.job;
    auto resolved = ResolveJob(loaded, run.ranks);
    if (resolved.ok()) {
      run.resolved = *std::move(resolved);
      return;
    }
    for (const auto line : absl::StrSplit(resolved.status().message(), '\n')) Problem(run, std::string(line));
  }

  void Problem(const SweepRun& run, const std::string& line) {
    if (problems_[line].empty()) problem_order_.push_back(line);
    problems_[line].push_back(run.name);
  }

  // Each problem once, with the runs that have it.
  absl::Status Problems() {
    for (const std::string& line : problem_order_) {
      const auto& names = problems_[line];
      std::string who;
      if (names.size() < sweep_.runs.size())
        who = absl::StrCat(" (run ", names[0], names.size() > 1 ? absl::StrCat(" and ", names.size() - 1, " more") : "",
                           ")");
      errors_.Add("", line + who);
    }
    return errors_.Result();
  }

  const SweepArgs& args_;
  Sweep sweep_;
  FieldPlaces places_;  // of the experiment's fields
  ConfigErrors errors_;
  std::vector<AxisSteps> axes_;
  LoadedJob base_;
  std::map<std::string, std::vector<std::string>> problems_;
  std::vector<std::string> problem_order_;
};

}  // namespace

std::vector<double> Numbers(const Dimension& dimension) {
  std::vector<double> numbers;
  for (const std::string& label : dimension.labels) {
    double number = 0;
    if (!absl::SimpleAtod(label, &number)) return {};
    numbers.push_back(number);
  }
  return numbers;
}

absl::StatusOr<Sweep> LoadSweep(const SweepArgs& args) { return SweepLoader(args).Load(); }

}  // namespace shoal
