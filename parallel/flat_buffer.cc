#include "parallel/flat_buffer.h"

#include <sys/mman.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "runtime/base/str.h"

namespace shoal {

absl::StatusOr<Tensor> FlatBuffer(int64_t elements, DType dtype, DeviceKind device, const char* what) {
  if (device == DeviceKind::kMeta || elements == 0) return Tensor::Zeros({elements}, dtype, device);
  const auto bytes = static_cast<size_t>(elements * DTypeBytes(dtype));
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", HumanBytes(static_cast<double>(bytes)), " of ", what,
                     "; take a smaller model, or more ranks with parallel.zero: 1, 2 or 3"));
  }
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  std::shared_ptr<void> owner(memory, [bytes](void* p) { ::munmap(p, bytes); });
  return Tensor(std::make_shared<Storage>(memory, static_cast<int64_t>(bytes), DeviceKind::kCpu, owner), 0, {elements},
                dtype);
}

}  // namespace shoal
