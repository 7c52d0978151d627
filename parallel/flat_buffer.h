// One allocation under all tensors of a bucket, for as long as the run.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// Zeros, 1-D, straight from the system: untouched pages cost nothing, and it says when there is not enough
// (ResourceExhausted; `what` names what it is for). Without memory on kMeta.
absl::StatusOr<Tensor> FlatBuffer(int64_t elements, DType dtype, DeviceKind device, const char* what);

}  // namespace shoal
