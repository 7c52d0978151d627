// data, inspect, diff, convert, report, stop, why-hang: what needs files only.
#include <algorithm>
#include <iostream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "comm/flight_recorder.h"
#include "launch/commands.h"
#include "launch/spectra.h"
#include "launch/stop_request.h"
#include "parallel/checkpoint/checkpoint_reader.h"
#include "runtime/base/file_system.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"
#include "runtime/data/dataset_builder.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/obs/report.h"

namespace shoal {
namespace {

int Print(const absl::StatusOr<std::string>& text) {
  if (!text.ok()) return Fail(text.status());
  std::cout << *text;
  return 0;
}

}  // namespace

int RunDataBuild(const std::vector<std::string>& inputs, const std::string& out, const std::string& split) {
  std::optional<Regex> at;
  if (!split.empty()) {
    auto compiled = Regex::Compile(split);
    if (!compiled.ok()) return Fail(Annotate(compiled.status(), "--split"));
    at = *std::move(compiled);
  }
  const auto report = BuildDataset(PosixFiles(), inputs, out, at);
  if (!report.ok()) return Fail(report.status());
  std::cout << out << ".bin/.idx: " << report->Text() << "\n";
  return 0;
}

int RunDataInfo(const std::string& path) {
  const auto dataset = TokenDataset::Open(path);
  if (!dataset.ok()) return Fail(dataset.status());
  BuildReport report;
  report.documents = (*dataset)->documents();
  report.tokens = (*dataset)->tokens();
  for (int64_t d = 0; d < report.documents; ++d) report.lengths.push_back(static_cast<int32_t>((*dataset)->length(d)));
  std::sort(report.lengths.begin(), report.lengths.end());
  std::cout << path << ": " << report.Text() << "\n";
  return 0;
}

int RunInspect(const std::vector<std::string>& runs, InspectMode mode) {
  if (mode == InspectMode::kSpectra) return Print(InspectSpectra(runs));
  for (const std::string& run : runs) {
    if (const int code = Print(InspectCheckpoint(run)); code != 0) return code;
  }
  return 0;
}

int RunDiff(const std::string& a, const std::string& b) { return Print(DiffCheckpoints(a, b)); }

int RunReport(std::vector<std::string> runs, std::string out) {
  for (std::string& run : runs) {
    while (run.size() > 1 && run.back() == '/') run.pop_back();
  }
  const size_t slash = runs[0].rfind('/');
  if (out.empty() && runs.size() == 1) out = runs[0] + "/report.html";
  if (out.empty()) out = slash == std::string::npos ? "report.html" : runs[0].substr(0, slash + 1) + "report.html";
  std::vector<std::string> without;
  const absl::Status status = runs.size() == 1 ? WriteReport(runs[0], out) : WriteOverlay(runs, out, &without);
  if (!status.ok()) return Fail(status);
  for (const std::string& run : without) std::cerr << run << " has no metrics; it is not on the page\n";
  std::cout << out << "\n";
  return 0;
}

int RunStop(const std::string& run) {
  auto state = PosixFiles().Read(run + "/state");
  if (!state.ok())
    return Fail(absl::InvalidArgumentError(absl::StrCat(run, " is no run directory: ", state.status().message())));
  if (*state != "running\n")
    return Fail(absl::InvalidArgumentError(absl::StrCat(run, " is not running; its state is: ", *state)));
  if (!LeaveStopFile(run)) return Fail(absl::InternalError(absl::StrCat(run, "/stop cannot be written")));
  std::cout << "asked; the run stops and saves at its next step boundary\n";
  return 0;
}

int RunWhyHang(const std::string& run) {
  return Print(WhyHang(PosixFiles().Exists(run + "/flight") ? run + "/flight" : run));
}

}  // namespace shoal
