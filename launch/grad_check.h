// debug.grad_check: the gradients of a job's own model against differences of its loss, in float64.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "launch/job.pb.h"
#include "parallel/data_parallel.h"
#include "runtime/base/thread_pool.h"
#include "runtime/module/module.h"

namespace shoal {

// Checks two elements of every parameter whose name contains a match of `pattern` (a regular expression,
// runtime/base/regex.h): the largest gradient and one drawn by name; on the first rows of `batch` (64 tokens, 3
// images), with the weights of `dp`. Four-point differences, step 4e-4. Returns a table; Aborted with it when one
// misses by more than 1e-5 of the largest gradient of its tensor; InvalidArgument when `pattern` is none or matches
// nothing. Collective where `dp` gathers weights; `batch` without x: this rank only takes part in that, and returns "".
absl::StatusOr<std::string> CheckGradients(const config::Job& job, const std::string& pattern, const Batch& batch,
                                           DataParallel& dp, ThreadPool& pool);

}  // namespace shoal
