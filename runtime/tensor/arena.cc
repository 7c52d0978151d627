#include "runtime/tensor/arena.h"

#include <glog/logging.h>
#include <sys/mman.h>

#include <algorithm>

#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr int64_t kAlign = 64;
int64_t RoundUp(int64_t n) { return (std::max<int64_t>(n, 1) + kAlign - 1) / kAlign * kAlign; }

}  // namespace

// Blocks of the live side by distance from the top: [start, start + bytes). Shared with the blocks' deleters, so that a
// Tensor may outlive the arena's last use of it.
struct Arena::LiveSide {
  std::map<int64_t, int64_t> blocks;  // start -> bytes
  int64_t Place(int64_t bytes) {      // first fit
    int64_t at = 0;
    for (const auto& [start, size] : blocks) {
      if (start - at >= bytes) break;
      at = start + size;
    }
    blocks.emplace(at, bytes);
    return at;
  }
  int64_t Extent() const { return blocks.empty() ? 0 : blocks.rbegin()->first + blocks.rbegin()->second; }
};

Arena::Arena(void* base, int64_t capacity, DeviceKind device)
    : base_(static_cast<char*>(base)), capacity_(capacity), device_(device), live_(std::make_shared<LiveSide>()) {
  const DeviceKind kind = device;
  std::shared_ptr<void> mapping;
  if (base != nullptr) mapping = std::shared_ptr<void>(base, [capacity](void* p) { munmap(p, capacity); });
  whole_ = std::make_shared<Storage>(base, capacity, kind, mapping);
}

Arena::~Arena() = default;

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(int64_t capacity, DeviceKind device) {
  capacity = (capacity + (1 << 21) - 1) >> 21 << 21;
  void* base = nullptr;
  if (device == DeviceKind::kCpu) {
    base = mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot reserve ", HumanBytes(static_cast<double>(capacity)),
                                                       " of addresses for activations; is `ulimit -v` set?"));
    }
    madvise(base, capacity, MADV_HUGEPAGE);  // advice only: the kernel may refuse
  }
  return std::unique_ptr<Arena>(new Arena(base, capacity, device));
}

void Arena::NotePeak() {
  frame_peak_ = std::max(frame_peak_, bottom_);
  peak_ = std::max(peak_, bottom_ + live_->Extent());
}

void Arena::ResetPeak() {
  peak_ = frame_peak_ = 0;
  NotePeak();
}

void Arena::Rewind(int64_t mark) {
  CHECK(0 <= mark && mark <= bottom_) << "frames are popped in the order they were pushed";
  bottom_ = mark;
}

Tensor Arena::Frame(Shape shape, DType dtype) {
  const int64_t bytes = RoundUp(NumElements(shape) * DTypeBytes(dtype));
  if (bottom_ + bytes + live_->Extent() > capacity_) {
    throw StepAborted(absl::ResourceExhaustedError(
        absl::StrCat("activations do not fit: frames ", HumanBytes(static_cast<double>(bottom_)), " + live values ",
                     HumanBytes(static_cast<double>(live_->Extent())), " + ", ShapeString(shape), " ", DTypeName(dtype),
                     " > ", HumanBytes(static_cast<double>(capacity_)), "; lower micro_batch or turn recompute on")));
  }
  Tensor out(whole_, bottom_, std::move(shape), dtype);
  bottom_ += bytes;
  NotePeak();
  return out;
}

Tensor Arena::Live(Shape shape, DType dtype) {
  const int64_t bytes = RoundUp(NumElements(shape) * DTypeBytes(dtype));
  const int64_t start = live_->Place(bytes);
  if (bottom_ + live_->Extent() > capacity_) {
    live_->blocks.erase(start);
    throw StepAborted(absl::ResourceExhaustedError(
        absl::StrCat("activations do not fit: frames ", HumanBytes(static_cast<double>(bottom_)), " + live values ",
                     HumanBytes(static_cast<double>(live_->Extent())), " + ", ShapeString(shape), " ", DTypeName(dtype),
                     " > ", HumanBytes(static_cast<double>(capacity_)), "; lower micro_batch or turn recompute on")));
  }
  NotePeak();
  char* data = base_ == nullptr ? nullptr : base_ + capacity_ - start - bytes;
  std::shared_ptr<void> release(nullptr, [live = live_, whole = whole_, start](void*) { live->blocks.erase(start); });
  return Tensor(std::make_shared<Storage>(data, bytes, device_, std::move(release)), 0, std::move(shape), dtype);
}

void Arena::Trim() {
  if (base_ == nullptr) return;
  constexpr int64_t kPage = 1 << 12;
  const int64_t begin = (bottom_ + kPage - 1) / kPage * kPage;
  const int64_t end = (capacity_ - live_->Extent()) / kPage * kPage;
  if (end > begin) madvise(base_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace shoal
