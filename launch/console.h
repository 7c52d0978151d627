// What rank 0 shows while it trains: lines, and below them on a terminal a progress bar that is drawn again and again.
// In a file or a pipe (mpirun's ranks) there is no bar, so logs stay clean.
#pragma once

#include <iosfwd>
#include <string>

namespace shoal {

class Console {
 public:
  enum class Kind { kTerminal, kPlain };
  // `out` outlives it.
  Console(std::ostream& out, Kind kind) : out_(out), kind_(kind) {}
  ~Console();  // takes the bar away

  void Line(const std::string& text);
  // `fraction` in [0, 1] of the run is done, `eta_seconds` are left.
  void Bar(double fraction, double eta_seconds);

 private:
  std::ostream& out_;
  const Kind kind_;
  std::string bar_;  // as drawn; empty: none
};

// Standard output, a terminal or not.
Console StandardConsole();

}  // namespace shoal
