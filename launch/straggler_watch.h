// Which rank works longest in a step, and whether it is mostly the same one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/obs/step_record.h"

namespace shoal {

class StragglerWatch {
 public:
  // Fills in the record's slowest rank; `seconds` by rank. Nothing to say of one rank.
  void Note(absl::Span<const double> seconds, StepRecord& record);

 private:
  std::vector<int64_t> slowest_;  // in how many steps each rank was it
  int64_t steps_ = 0;
};

}  // namespace shoal
