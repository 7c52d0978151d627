// Flight recorder: the last operations of a rank in an mmapped ring file, which survives kill -9. why_hang.h reads it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// kHeld: submitted, but work of the rank's own stream must be done first; so it also stays when the communicator fails.
enum class FlightState : uint8_t { kEntered = 1, kDone = 2, kFailed = 3, kHeld = 4 };

struct FlightEntry {
  int64_t sequence = 0;  // of its communicator
  int64_t order = 0;     // of the rank, from 1
  int64_t bytes = 0;
  int64_t entered_ns = 0;  // CLOCK_REALTIME
  int64_t left_ns = 0;
  FlightState state = FlightState::kEntered;
  char group[23] = {};
  char op[24] = {};
  char tag[48] = {};
};

class FlightRecorder {
 public:
  static absl::StatusOr<std::unique_ptr<FlightRecorder>> Open(const std::string& path, int rank, int size);
  ~FlightRecorder();
  // Not thread-safe with itself; the others may run on another thread. Returns the entry's place for them. `state` is
  // kEntered or kHeld.
  int64_t Enter(absl::string_view group, int64_t sequence, absl::string_view op, absl::string_view tag, int64_t bytes,
                FlightState state);
  void Begin(int64_t place);  // kHeld no longer
  void Leave(int64_t place, FlightState state);

 private:
  struct File;
  explicit FlightRecorder(File* file) : file_(file) {}
  File* file_;
};

struct FlightRecord {
  int rank = 0, size = 0;
  int64_t pid = 0;
  std::vector<FlightEntry> entries;  // oldest first
};
absl::StatusOr<FlightRecord> ReadFlightRecord(const std::string& path);

// Merges all rank-*.ring files of a folder and says which rank holds up which operation.
absl::StatusOr<std::string> WhyHang(const std::string& folder);

}  // namespace shoal
