// Errors: absl::Status for whatever a user or a machine can cause, glog CHECK for programmer errors, StepAborted to
// unwind a step.
#pragma once

#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace shoal {

// The process's exit codes; README.md lists them for users.
enum class ExitCode : int {
  kOk = 0,             // done, or stopped on request with its state saved
  kConfig = 2,         // configuration and usage
  kData = 3,           // data and checkpoints
  kCommunication = 4,  // a peer is gone, late or out of step
  kMemory = 5,
  kDiverged = 6,
  kEnvironment = 7,  // launcher, differing builds, unshared run directory, lock, full disk
};

// Status codes and their owners: InvalidArgument and FailedPrecondition = configuration, DataLoss and NotFound = data,
// Unavailable and DeadlineExceeded = communication, ResourceExhausted = memory, Aborted = diverged, anything else =
// environment.
ExitCode ExitCodeFor(const absl::Status& status);

// Full disk, lock held, launcher mismatch: what the environment must mend (exit 7).
absl::Status EnvironmentError(absl::string_view message);

// Returns `status` with `context: ` before its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// Unwinds a step in flight. Thrown only by the step context (and the ops it calls); caught only at the trainer's step
// boundary.
class StepAborted : public std::exception {
 public:
  explicit StepAborted(absl::Status status) : status_(std::move(status)), what_(status_.ToString()) {}
  const absl::Status& status() const { return status_; }
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  absl::Status status_;
  std::string what_;
};

}  // namespace shoal

#define SHOAL_CONCAT_INNER_(a, b) a##b
#define SHOAL_CONCAT_(a, b) SHOAL_CONCAT_INNER_(a, b)

#define SHOAL_RETURN_IF_ERROR(expression)                                                       \
  do {                                                                                          \
    if (::absl::Status shoal_status_ = (expression); !shoal_status_.ok()) return shoal_status_; \
  } while (false)

// SHOAL_ASSIGN_OR_RETURN(auto x, Compute()); returns the error, or moves the value into `x`.
#define SHOAL_ASSIGN_OR_RETURN(lhs, expression) \
  SHOAL_ASSIGN_OR_RETURN_IMPL_(SHOAL_CONCAT_(shoal_statusor_, __LINE__), lhs, expression)
#define SHOAL_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expression) \
  auto statusor = (expression);                                 \
  if (!statusor.ok()) return statusor.status();                 \
  lhs = std::move(statusor).value()
