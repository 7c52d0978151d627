#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/launcher.h"
#include "launch/resolve.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// Runs `line`; when the run's state says that it failed and mpirun is still there 10 s later, kills it.
int RunAndWatch(const std::string& line, const std::string& run_dir) {
  const pid_t child = ::fork();
  if (child < 0) return Fail(EnvironmentError("fork failed"));
  if (child == 0) {
    ::setpgid(0, 0);
    ::execl("/bin/sh", "sh", "-c", ("exec " + line).c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  int status = 0, failed_for = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const auto state = PosixFiles().Read(run_dir + "/state");
    failed_for = state.ok() && absl::StartsWith(*state, "failed") ? failed_for + 1 : 0;
    if (failed_for == 20) {
      std::cerr << "mpirun is still there 10 s after the run failed; it is killed" << std::endl;
      ::kill(-child, SIGKILL);
    }
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  // A killed rank 0 could not say so itself.
  const auto state = PosixFiles().Read(run_dir + "/state");
  if (code != 0 && state.ok() && *state == "running\n") {
    WriteFileAtomically(PosixFiles(), run_dir + "/state", absl::StrCat("failed: mpirun ended with ", code, "\n"))
        .IgnoreError();
  }
  return code;
}

}  // namespace

int RunLaunch(LaunchArgs args, LaunchMode mode) {
  auto loaded = LoadJob(args.job, args.sets);
  if (!loaded.ok()) return Fail(loaded.status());
  const auto job = ResolveJob(*loaded, args.ranks);
  if (!job.ok()) return Fail(job.status());
  if (args.run_dir.empty()) args.run_dir = "runs/" + job->name();
  args.program = ProgramPath();
  if (mode == LaunchMode::kPrintSlurm) {
    std::cout << SlurmScript(args);
    return 0;
  }
  const std::string line = MpirunLine(args);
  std::cout << line << std::endl;
  if (mode == LaunchMode::kPrintMpirun) return 0;
  // The state of an earlier start must not be taken for this one's.
  if (PosixFiles().Exists(args.run_dir + "/state")) PosixFiles().RemoveAll(args.run_dir + "/state").IgnoreError();
  return RunAndWatch(line, args.run_dir);
}

}  // namespace shoal
