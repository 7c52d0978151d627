#include "launch/run_dir.h"

#include <google/protobuf/text_format.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "launch/config_loader.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/openblas_adapter.h"
#include "runtime/ops/cpu/row_kernels.h"

namespace shoal {

std::string BuildId() {
  return absl::StrCat("shoal 0.1, ", __VERSION__, ", oneDNN ", cpu::OneDnnVersion(),
                      cpu::PrefersOpenBlas() ? ", products by " + cpu::OpenBlasVersion() : "");
}

absl::StatusOr<std::unique_ptr<RunDir>> RunDir::Open(const std::string& path) {
  for (const char* folder : {"", "/checkpoints", "/flight", "/logs"})
    SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(path + folder));
  SHOAL_ASSIGN_OR_RETURN(
      auto lock, FolderLock::Take(path, {"run directory", absl::StrCat("Wait for it, stop it with `shoal stop ", path,
                                                                       "`, or choose another --run_dir")}));
  return std::unique_ptr<RunDir>(new RunDir(path, std::move(lock)));
}

absl::Status RunDir::WriteState(const std::string& state) {
  return WriteFileAtomically(PosixFiles(), File("state"), state + "\n");
}

absl::StatusOr<bool> RunDir::ReadJob(config::Job* job) const {
  const std::string path = File("job.textproto");
  if (!PosixFiles().Exists(path)) return false;
  SHOAL_ASSIGN_OR_RETURN(LoadedJob loaded, LoadJob(path, {}));
  *job = loaded.job;
  return true;
}

absl::Status RunDir::WriteJob(const config::Job& job) {
  return WriteFileAtomically(PosixFiles(), File("job.textproto"), JobText(job));
}

absl::Status RunDir::WriteEnvironment(int ranks, int threads_per_rank, const std::string& compute) {
  const nlohmann::json j = {{"host", HostName()},
                            {"build", BuildId()},
                            {"started", absl::FormatTime(absl::Now(), absl::UTCTimeZone())},
                            {"ranks", ranks},
                            {"threads_per_rank", threads_per_rank},
                            {"compute", compute},
                            {"kernels", cpu::DispatchTarget()},
                            {"cores", std::thread::hardware_concurrency()}};
  return WriteFileAtomically(PosixFiles(), File("environment.json"), j.dump(1) + "\n");
}

absl::StatusOr<config::Job> JobOfRun(const std::string& run, const std::string& checkpoint) {
  std::string path = run + "/job.textproto";
  for (const char* up : {"/../job.textproto", "/../../job.textproto"}) {
    if (!PosixFiles().Exists(path)) path = checkpoint + up;
  }
  SHOAL_ASSIGN_OR_RETURN(LoadedJob loaded, LoadJob(path, {}));
  return loaded.job;
}

}  // namespace shoal
