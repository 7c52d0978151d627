// In the place of the CUDA back end, in builds without one.
#include "absl/strings/str_cat.h"
#include "runtime/device/device.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<Device>> CudaDevice(int ordinal) {
  return absl::FailedPreconditionError(
      absl::StrCat("CUDA device ", ordinal, ": this build has no CUDA back end; run on the CPU"));
}

}  // namespace shoal
