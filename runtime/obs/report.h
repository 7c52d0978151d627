// report.html: one self-contained page about a run, or about several side by side, drawn from their metrics.jsonl.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace shoal {

// Reads metrics.jsonl, environment.json, job.textproto and state (and sample.txt where there is one) of `run_dir` and
// writes the page `out`. NotFound when there are no metrics.
absl::Status WriteReport(const std::string& run_dir, const std::string& out);

// Losses, learning rates and throughput of all runs (two or more) over each other, and a table of their final values.
// Runs without metrics are said on the page and added to `without_metrics`; NotFound when none has any.
absl::Status WriteOverlay(const std::vector<std::string>& run_dirs, const std::string& out,
                          std::vector<std::string>* without_metrics);

}  // namespace shoal
