// report.html: one self-contained page about a run, drawn from its metrics.jsonl.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace shoal {

// Reads metrics.jsonl, environment.json, job.textproto and state (and sample.txt where there is one) of `run_dir` and
// writes report.html there. NotFound when there are no metrics.
absl::Status WriteReport(const std::string& run_dir);

}  // namespace shoal
