// Device: where tensors live and work runs. It allocates, and makes the streams that its work is put in order by.
//
// Thread-safe. Tensors, streams and events may outlive the device that made them.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/device/stream.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  // A contiguous tensor of zeros, 64-byte aligned; on kMeta without memory. For buffers that stay: the step allocates
  // from its Arena. InvalidArgument for a negative extent, ResourceExhausted with the size when there is no memory.
  virtual absl::StatusOr<Tensor> Allocate(Shape shape, DType dtype) = 0;
  // ResourceExhausted when the system has no more threads (or queues) to give.
  virtual absl::StatusOr<std::unique_ptr<Stream>> MakeStream(absl::string_view name) = 0;
};

struct CpuDeviceOptions {
  // kInline: enqueued work runs at once on the caller's thread, and events are done at once. No thread, no queue: what
  // training on the CPU uses. kAsynchronous: a worker thread per stream, as on a GPU.
  enum class Streams : uint8_t { kInline, kAsynchronous } streams = Streams::kInline;
  // kAsynchronous, for tests: a worker pauses before each item of its stream, events and waits included, for a time
  // uniform in [0, longest_delay) that depends on seed, stream name and position alone. So work that lacks an event, or
  // a buffer used again too early, fails here and not on a GPU.
  absl::Duration longest_delay = absl::ZeroDuration();
  uint64_t seed = 0;
};
std::unique_ptr<Device> CpuDevice(const CpuDeviceOptions& options);

// Shapes only, for dry runs: tensors have no memory, work is dropped, events are done at once.
std::unique_ptr<Device> MetaDevice();

// GPU number `ordinal` of this process. FailedPrecondition in a build without a CUDA back end.
absl::StatusOr<std::unique_ptr<Device>> CudaDevice(int ordinal);

}  // namespace shoal
