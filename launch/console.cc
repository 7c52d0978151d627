#include "launch/console.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr char kClearLine[] = "\r\033[K";

}  // namespace

Console::~Console() {
  if (!bar_.empty()) out_ << kClearLine << std::flush;
}

void Console::Line(const std::string& text) {
  if (!bar_.empty()) out_ << kClearLine;
  out_ << text << "\n" << bar_ << std::flush;
}

void Console::Bar(double fraction, double eta_seconds) {
  if (kind_ == Kind::kPlain) return;
  constexpr int kCells = 40;
  const double share = std::clamp(fraction, 0.0, 1.0);
  const int full = static_cast<int>(std::floor(share * kCells));
  bar_ = absl::StrFormat("[%s%s] %3.0f%% | ETA %s", std::string(static_cast<size_t>(full), '#'),
                         std::string(static_cast<size_t>(kCells - full), '.'), 100 * share, HumanDuration(eta_seconds));
  out_ << kClearLine << bar_ << std::flush;
}

namespace {

// mpirun and srun may give a rank a terminal of its own and pass on what it writes, so that what counts is where the
// launcher, the rank's parent, writes to.
bool WritesToATerminal() {
  if (::isatty(STDOUT_FILENO) != 1) return false;
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr && std::getenv("SLURM_PROCID") == nullptr) return true;
  std::error_code unreadable;
  const auto target = std::filesystem::read_symlink(absl::StrCat("/proc/", ::getppid(), "/fd/1"), unreadable);
  return !unreadable &&
         (absl::StartsWith(target.string(), "/dev/pts/") || absl::StartsWith(target.string(), "/dev/tty"));
}

}  // namespace

Console StandardConsole() {
  return Console(std::cout, WritesToATerminal() ? Console::Kind::kTerminal : Console::Kind::kPlain);
}

}  // namespace shoal
