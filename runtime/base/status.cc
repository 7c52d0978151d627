#include "runtime/base/status.h"

namespace shoal {

ExitCode ExitCodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return ExitCode::kConfig;
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
      return ExitCode::kData;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kCommunication;
    case absl::StatusCode::kResourceExhausted:
      return ExitCode::kMemory;
    case absl::StatusCode::kAborted:
      return ExitCode::kDiverged;
    default:
      return ExitCode::kEnvironment;
  }
}

absl::Status EnvironmentError(absl::string_view message) { return absl::InternalError(message); }

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace shoal
