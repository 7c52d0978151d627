#include "launch/run_dir.h"

#include <fcntl.h>
#include <google/protobuf/text_format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "launch/config_loader.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/row_kernels.h"

namespace shoal {

std::string HostName() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::string BuildId() { return absl::StrCat("shoal 0.1, ", __VERSION__, ", oneDNN ", cpu::OneDnnVersion()); }

absl::StatusOr<std::unique_ptr<RunDir>> RunDir::Open(const std::string& path) {
  for (const char* folder : {"", "/checkpoints", "/flight", "/logs"})
    SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(path + folder));
  const std::string lock = path + "/lock";
  const char* slurm_job = std::getenv("SLURM_JOB_ID");
  const std::string mine =
      absl::StrCat(HostName(), " ", ::getpid(), slurm_job != nullptr ? absl::StrCat(" ", slurm_job) : "", "\n");
  for (int attempt = 0; attempt < 2; ++attempt) {
    const int fd = ::open(lock.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0) {
      const bool written = ::write(fd, mine.data(), mine.size()) == static_cast<ssize_t>(mine.size());
      const int error = errno;
      ::close(fd);
      if (!written) {
        ::unlink(lock.c_str());
        return EnvironmentError(absl::StrCat(lock, ": ", std::strerror(error)));
      }
      return std::unique_ptr<RunDir>(new RunDir(path));
    }
    if (errno != EEXIST) return EnvironmentError(absl::StrCat(lock, ": ", std::strerror(errno)));
    std::ifstream in(lock);
    std::string host;
    std::string job_id;
    long pid = 0;
    in >> host >> pid >> job_id;
    if (host == HostName() && (pid <= 0 || (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH))) {
      ::unlink(lock.c_str());  // its writer is dead
      continue;
    }
    return EnvironmentError(absl::StrCat("run directory ", path, " is in use by process ", pid, " on ", host,
                                         job_id.empty() ? "" : absl::StrCat(" (Slurm job ", job_id, ")"),
                                         ". Wait for it, stop it with `shoal stop ", path,
                                         "`, or choose another --run_dir. If that process is gone, remove ", lock));
  }
  return EnvironmentError(absl::StrCat(lock, ": another process took it first"));
}

RunDir::~RunDir() { ::unlink((path_ + "/lock").c_str()); }

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

}  // namespace shoal
