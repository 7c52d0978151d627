#include "launch/console.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>

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

Console StandardConsole() {
  return Console(std::cout, ::isatty(STDOUT_FILENO) == 1 ? Console::Kind::kTerminal : Console::Kind::kPlain);
}

}  // namespace shoal
