#include "launch/experiment/run_status.h"

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/config_loader.h"
#include "launch/folder_lock.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// Ranks of the run's last start; 0: it does not say.
int RanksOf(const std::string& run_dir) {
  const auto text = PosixFiles().Read(run_dir + "/environment.json");
  if (!text.ok()) return 0;
  const auto environment = nlohmann::json::parse(*text, nullptr, false);
  return environment.is_object() ? environment.value("ranks", 0) : 0;
}

// "" when the job in `run_dir` is the sweep's.
std::string Changes(const SweepRun& run, const std::string& run_dir) {
  const auto before = LoadJob(run_dir + "/job.textproto", {});
  if (!before.ok()) return absl::StrCat("its job.textproto is of another version: ", before.status().message());
  config::Job now = run.resolved;
  // What AUTO came to was settled by the hosts of the first start, and a run keeps it.
  if (now.runtime().compute() == config::RuntimeConfig::AUTO)
    now.mutable_runtime()->set_compute(before->job.runtime().compute());
  std::vector<std::string> changes = ResultChanges(before->job, now, {});
  const int ranks = RanksOf(run_dir);
  if (ranks > 0 && ranks != run.ranks) changes.push_back(absl::StrCat("ranks: ", ranks, " -> ", run.ranks));
  return absl::StrJoin(changes, "; ");
}

}  // namespace

const char* Text(RunState state) {
  switch (state) {
    case RunState::kNew:
      return "not run";
    case RunState::kFinished:
      return "finished";
    case RunState::kDiverged:
      return "diverged";
    case RunState::kStopped:
      return "stopped";
    case RunState::kFailed:
      return "failed";
    case RunState::kBroken:
      return "unfinished";
    case RunState::kChanged:
      return "changed";
  }
  return "";
}

bool Settled(RunState state) { return state == RunState::kFinished || state == RunState::kDiverged; }

RunStatus StatusOf(const Sweep& sweep, const SweepRun& run) {
  const std::string run_dir = sweep.RunDir(run);
  if (!PosixFiles().Exists(run_dir + "/job.textproto")) return {};
  if (const std::string changes = Changes(run, run_dir); !changes.empty()) return {RunState::kChanged, changes};
  const auto text = PosixFiles().Read(run_dir + "/state");
  const std::string state = text.ok() ? std::string(absl::StripAsciiWhitespace(*text)) : "";
  if (state == "finished") return {RunState::kFinished, state};
  if (absl::StartsWith(state, "failed: diverged")) return {RunState::kDiverged, state};
  if (absl::StartsWith(state, "stopped")) return {RunState::kStopped, state};
  if (absl::StartsWith(state, "failed")) return {RunState::kFailed, state};
  return {RunState::kBroken, state};
}

absl::StatusOr<std::string> MoveAside(const Sweep& sweep, const SweepRun& run) {
  const std::string run_dir = sweep.RunDir(run);
  if (const auto holder = FolderLock::Holder(run_dir)) {
    return EnvironmentError(
        absl::StrCat(run_dir, " has to make room for a changed job, and ", *holder, " writes there"));
  }
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(sweep.folder + "/old"));
  for (int k = 1;; ++k) {
    const std::string aside = absl::StrCat(sweep.folder, "/old/", run.name, "-", k);
    if (PosixFiles().Exists(aside)) continue;
    SHOAL_RETURN_IF_ERROR(PosixFiles().Rename(run_dir, aside));
    return aside;
  }
}

}  // namespace shoal
