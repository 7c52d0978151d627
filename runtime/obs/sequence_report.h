// The part of report.html about sequence plans: which groups had which ranks when, predicted and measured.
#pragma once

#include <string>

namespace shoal {

// Groups over ranks and time of the last steps, of the lines of plans/sequences.jsonl; "" when there is none. A step is
// drawn twice, as long as it was predicted and as long as it was measured. Damaged lines are left out, and counted.
std::string SequenceMap(const std::string& lines);

}  // namespace shoal
