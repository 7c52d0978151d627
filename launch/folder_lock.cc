#include "launch/folder_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// A killed process answers signals until somebody reaps it, which the first process of a container may never do.
bool IsZombie(long pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string stat;
  std::getline(file, stat);
  const size_t name_end = stat.rfind(')');
  return name_end != std::string::npos && stat.compare(name_end, 3, ") Z") == 0;
}

struct LockFile {
  std::string host, job_id;
  long pid = 0;
  bool OfDeadProcess() const {
    if (host != HostName()) return false;
    return pid <= 0 || (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) || IsZombie(pid);
  }
  std::string Text() const {
    return absl::StrCat("process ", pid, " on ", host, job_id.empty() ? "" : absl::StrCat(" (Slurm job ", job_id, ")"));
  }
};

LockFile ReadLock(const std::string& path) {
  std::ifstream in(path);
  LockFile lock;
  in >> lock.host >> lock.pid >> lock.job_id;
  return lock;
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

absl::StatusOr<std::unique_ptr<FolderLock>> FolderLock::Take(const std::string& folder, const Words& words) {
  const std::string path = folder + "/lock";
  const char* slurm_job = std::getenv("SLURM_JOB_ID");
  const std::string mine =
      absl::StrCat(HostName(), " ", ::getpid(), slurm_job != nullptr ? absl::StrCat(" ", slurm_job) : "", "\n");
  for (int attempt = 0; attempt < 2; ++attempt) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0) {
      const bool written = ::write(fd, mine.data(), mine.size()) == static_cast<ssize_t>(mine.size());
      const int error = errno;
      ::close(fd);
      if (!written) {
        ::unlink(path.c_str());
        return EnvironmentError(absl::StrCat(path, ": ", std::strerror(error)));
      }
      return std::unique_ptr<FolderLock>(new FolderLock(path));
    }
    if (errno != EEXIST) return EnvironmentError(absl::StrCat(path, ": ", std::strerror(errno)));
    const LockFile holder = ReadLock(path);
    if (holder.OfDeadProcess()) {
      ::unlink(path.c_str());
      continue;
    }
    return EnvironmentError(absl::StrCat(words.what, " ", folder, " is in use by ", holder.Text(), ". ", words.remedy,
                                         ". If that process is gone, remove ", path));
  }
  return EnvironmentError(absl::StrCat(path, ": another process took it first"));
}

FolderLock::~FolderLock() { ::unlink(path_.c_str()); }

std::optional<std::string> FolderLock::Holder(const std::string& folder) {
  const std::string path = folder + "/lock";
  if (::access(path.c_str(), F_OK) != 0) return std::nullopt;
  const LockFile holder = ReadLock(path);
  if (holder.OfDeadProcess()) return std::nullopt;
  return holder.Text();
}

}  // namespace shoal
