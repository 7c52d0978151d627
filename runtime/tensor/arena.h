// Arena: all memory that a step takes and gives back, in one reserved address range, committed on demand.
//
// Frames (what Forward keeps for Backward) are a stack that grows from the bottom; live values (dy, workspace, the
// step's gradients) are blocks placed first-fit from the top and freed when their last Tensor dies. Neither moves a
// pointer. Fit() brings the top down to what a step needs, so that gradients come to lie where Backward has popped
// frames: resident is the largest sum of both, not the sum of what each has at its largest. On the meta device the same
// bookkeeping runs without memory, so a dry run gives the exact peak. Not thread-safe: one arena belongs to one rank's
// main thread; Tensors of it may be read anywhere.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

class Arena {
 public:
  // Reserves `capacity` bytes of addresses (no memory yet). ResourceExhausted when the range cannot be reserved.
  static absl::StatusOr<std::unique_ptr<Arena>> Create(int64_t capacity, DeviceKind device);
  ~Arena();

  // Position of the frame stack; Rewind(mark) frees all frame tensors made after it. Their handles must be dead or
  // unused by then.
  int64_t FrameMark() const { return bottom_; }
  void Rewind(int64_t mark);

  // A tensor on the frame stack / a live block. 64-byte aligned, not initialised. Throws StepAborted(ResourceExhausted,
  // with the sizes and the biggest holders) when the range is full.
  Tensor Frame(Shape shape, DType dtype);
  Tensor Live(Shape shape, DType dtype);

  // The same memory as `live`, contiguous, through a handle that may die on any thread and any time later: it keeps the
  // range there but not the block taken. For operations under way.
  Tensor Lend(const Tensor& live) const;

  // Lets frames and live values share the first `bytes` of the range, which is empty now; gives memory above back to
  // the system. What does not fit all the same lies above them: it costs memory, nothing else.
  void Fit(int64_t bytes);
  int64_t fitted() const { return top_; }  // the capacity until Fit

  int64_t frame_bytes() const { return low_frames() + high_frames(); }
  int64_t peak() const { return peak_; }  // most bytes in use at once: frames + extent of the live side
  void ResetPeak();
  int64_t capacity() const { return capacity_; }
  DeviceKind device() const { return device_; }

 private:
  struct LiveSide;
  Arena(void* base, int64_t capacity, DeviceKind device);
  void NotePeak();
  [[noreturn]] void Full(const Shape& shape, DType dtype) const;
  // The range has two parts, below and above `top_`. Each has frames at its bottom and live blocks at its top.
  int64_t low_frames() const { return bottom_ < top_ ? bottom_ : low_end_; }
  int64_t high_frames() const { return bottom_ > top_ ? bottom_ - top_ : 0; }
  int64_t live_bytes() const;
  char* base_;
  int64_t capacity_;
  DeviceKind device_;
  int64_t top_;
  int64_t bottom_ = 0;   // where the next frame goes
  int64_t low_end_ = 0;  // end of the last frame below top_, once frames go on above
  int64_t peak_ = 0;
  std::shared_ptr<Storage> whole_;
  std::shared_ptr<LiveSide> live_;
};

}  // namespace shoal
