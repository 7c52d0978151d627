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

// Where live blocks are not, in both parts of the range. Shared with the blocks' deleters, so that a Tensor may outlive
// the arena's last use of it. Blocks may be many (a gradient each); gaps between them are few.
struct Arena::LiveSide {
  int64_t top, capacity;
  std::map<int64_t, int64_t> gaps = {};  // start -> end; neighbours are joined, but not over `top`
  int64_t blocks = 0;

  void Clear(int64_t new_top) {
    top = new_top;
    gaps = {{0, top}};
    if (top < capacity) gaps[top] = capacity;
  }
  // First fit from the top of [begin, end), one of the two parts, down to `floor`; -1 when there is no room.
  int64_t Place(int64_t bytes, int64_t floor, int64_t begin, int64_t end) {
    for (auto gap = gaps.lower_bound(end); gap != gaps.begin();) {
      --gap;
      if (gap->first < begin) break;
      const int64_t start = gap->second - bytes;
      if (start < std::max(floor, gap->first)) continue;
      gap->second = start;
      if (gap->first == start) gaps.erase(gap);
      ++blocks;
      return start;
    }
    return -1;
  }
  void Free(int64_t start, int64_t bytes) {
    --blocks;
    auto gap = gaps.emplace(start, start + bytes).first;
    const auto next = std::next(gap);
    if (next != gaps.end() && next->first == gap->second && next->first != top) {
      gap->second = next->second;
      gaps.erase(next);
    }
    if (gap == gaps.begin() || start == top) return;
    const auto before = std::prev(gap);
    if (before->second != start) return;
    before->second = gap->second;
    gaps.erase(gap);
  }
  // Where the live blocks of the part that starts at `begin` start: nothing below is taken.
  int64_t Lowest(int64_t begin) const {
    const auto gap = gaps.find(begin);
    return gap == gaps.end() ? begin : gap->second;
  }
};

Arena::Arena(void* base, int64_t capacity, DeviceKind device)
    : base_(static_cast<char*>(base)),
      capacity_(capacity),
      device_(device),
      top_(capacity),
      live_(std::make_shared<LiveSide>(LiveSide{.top = capacity, .capacity = capacity})) {
  live_->Clear(top_);
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

int64_t Arena::live_bytes() const {
  return top_ - live_->Lowest(0) + (top_ < capacity_ ? capacity_ - live_->Lowest(top_) : 0);
}

void Arena::NotePeak() { peak_ = std::max(peak_, frame_bytes() + live_bytes()); }

void Arena::ResetPeak() {
  peak_ = 0;
  NotePeak();
}

void Arena::Rewind(int64_t mark) {
  CHECK(0 <= mark && mark <= bottom_) << "frames are popped in the order they were pushed";
  bottom_ = mark;
}

void Arena::Fit(int64_t bytes) {
  CHECK(bottom_ == 0 && live_->blocks == 0) << "an arena is fitted between steps";
  top_ = std::clamp<int64_t>(RoundUp(bytes), kAlign, capacity_);
  live_->Clear(top_);
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
  if (at <= top_ && at + bytes > live_->Lowest(0)) {
    low_end_ = low_frames();
    at = top_;
  }
  if (at >= top_ && (top_ == capacity_ || at + bytes > live_->Lowest(top_))) Full(shape, dtype);
  Tensor out(whole_, at, std::move(shape), dtype);
  bottom_ = at + bytes;
  if (at < top_) low_end_ = bottom_;
  NotePeak();
  return out;
}

Tensor Arena::Live(Shape shape, DType dtype) {
  const int64_t bytes = RoundUp(NumElements(shape) * DTypeBytes(dtype));
  int64_t start = live_->Place(bytes, low_frames(), 0, top_);
  if (start < 0) start = live_->Place(bytes, top_ + high_frames(), top_, capacity_);
  if (start < 0) Full(shape, dtype);
  NotePeak();
  char* data = base_ == nullptr ? nullptr : base_ + start;
  std::shared_ptr<void> release(nullptr,
                                [live = live_, whole = whole_, start, bytes](void*) { live->Free(start, bytes); });
  return Tensor(std::make_shared<Storage>(data, bytes, device_, std::move(release)), 0, std::move(shape), dtype);
}

Tensor Arena::Lend(const Tensor& live) const {
  const int64_t at = base_ == nullptr ? 0 : static_cast<char*>(live.raw()) - base_;
  return Tensor(whole_, at, live.shape(), live.dtype());
}

}  // namespace shoal
