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

// Blocks of the live side by address. Shared with the blocks' deleters, so that a Tensor may outlive the arena's last
// use of it.
struct Arena::LiveSide {
  std::map<int64_t, int64_t> blocks;  // start -> bytes

  // First fit from `ceiling` down to `floor`; -1 when there is no room. No block reaches over `ceiling`.
  int64_t Place(int64_t bytes, int64_t floor, int64_t ceiling) {
    int64_t end = ceiling;
    for (auto block = blocks.lower_bound(ceiling); block != blocks.begin();) {
      --block;
      const int64_t block_end = block->first + block->second;
      if (block_end <= floor || end - block_end >= bytes) break;
      end = block->first;
    }
    if (end - bytes < floor) return -1;
    blocks.emplace(end - bytes, bytes);
    return end - bytes;
  }
  // Start of the lowest block in [floor, ceiling); `ceiling` when there is none.
  int64_t Lowest(int64_t floor, int64_t ceiling) const {
    const auto block = blocks.lower_bound(floor);
    return block == blocks.end() ? ceiling : std::min(block->first, ceiling);
  }
};

Arena::Arena(void* base, int64_t capacity, DeviceKind device)
    : base_(static_cast<char*>(base)),
      capacity_(capacity),
      device_(device),
      top_(capacity),
      live_(std::make_shared<LiveSide>()) {
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

int64_t Arena::live_bytes() const { return top_ - live_->Lowest(0, top_) + capacity_ - live_->Lowest(top_, capacity_); }

void Arena::NotePeak() {
  frame_peak_ = std::max(frame_peak_, frame_bytes());
  peak_ = std::max(peak_, frame_bytes() + live_bytes());
}

void Arena::ResetPeak() {
  peak_ = frame_peak_ = 0;
  NotePeak();
}

void Arena::Rewind(int64_t mark) {
  CHECK(0 <= mark && mark <= bottom_) << "frames are popped in the order they were pushed";
  bottom_ = mark;
}

void Arena::Fit(int64_t bytes) {
  CHECK(bottom_ == 0 && live_->blocks.empty()) << "an arena is fitted between steps";
  top_ = std::clamp<int64_t>(RoundUp(bytes), kAlign, capacity_);
  if (base_ == nullptr) return;
  constexpr int64_t kPage = 1 << 12;
  const int64_t begin = (top_ + kPage - 1) / kPage * kPage;
  if (begin < capacity_) madvise(base_ + begin, capacity_ - begin, MADV_DONTNEED);
}

void Arena::Full(const Shape& shape, DType dtype) const {
  throw StepAborted(absl::ResourceExhaustedError(
      absl::StrCat("activations do not fit: frames ", HumanBytes(static_cast<double>(frame_bytes())), " + live values ",
                   HumanBytes(static_cast<double>(live_bytes())), " + ", ShapeString(shape), " ", DTypeName(dtype),
                   " > ", HumanBytes(static_cast<double>(capacity_)), "; lower micro_batch or turn recompute on")));
}

Tensor Arena::Frame(Shape shape, DType dtype) {
  const int64_t bytes = RoundUp(NumElements(shape) * DTypeBytes(dtype));
  int64_t at = bottom_;
  if (at <= top_ && at + bytes > live_->Lowest(0, top_)) {
    low_end_ = low_frames();
    at = top_;
  }
  if (at >= top_ && at + bytes > live_->Lowest(top_, capacity_)) Full(shape, dtype);
  Tensor out(whole_, at, std::move(shape), dtype);
  bottom_ = at + bytes;
  if (at < top_) low_end_ = bottom_;
  NotePeak();
  return out;
}

Tensor Arena::Live(Shape shape, DType dtype) {
  const int64_t bytes = RoundUp(NumElements(shape) * DTypeBytes(dtype));
  int64_t start = live_->Place(bytes, low_frames(), top_);
  if (start < 0) start = live_->Place(bytes, top_ + high_frames(), capacity_);
  if (start < 0) Full(shape, dtype);
  NotePeak();
  char* data = base_ == nullptr ? nullptr : base_ + start;
  std::shared_ptr<void> release(nullptr, [live = live_, whole = whole_, start](void*) { live->blocks.erase(start); });
  return Tensor(std::make_shared<Storage>(data, bytes, device_, std::move(release)), 0, std::move(shape), dtype);
}

}  // namespace shoal
