// GradientFlights: the whole gradients of buckets, from their first contribution in a micro-batch until they are
// reduced (ZeRO 2 and 3).
//
// Whole gradients are live blocks of an arena, each of its bucket's size. Reductions end in the order in which they
// began; before another bucket is opened all but the last kUnderWay of those that began have ended, and their memory is
// free again. So memory follows program order alone: a dry run knows the peak. Belongs to the main thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "parallel/sharder.h"
#include "runtime/tensor/arena.h"

namespace shoal {

class GradientFlights {
 public:
  static constexpr size_t kUnderWay = 2;
  // A bucket's reduction.
  struct Flight {
    size_t bucket = 0;
    Tensor whole;  // the bucket's gradients, flat
    Tensor sum;    // of the own run, where it is to be added to what is there; undefined: it came to where it stays
    WorkPtr work;  // null on the meta device
  };
  // Takes what a reduction left, before its memory goes.
  using Landed = std::function<void(const Flight&)>;

  // `plan` and `arena` outlive it. Gradients are of `dtype`.
  GradientFlights(const ShardPlan& plan, Arena& arena, DType dtype, Landed landed)
      : plan_(plan), arena_(arena), dtype_(dtype), landed_(std::move(landed)), open_(plan.buckets.size()) {}

  // The bucket's whole gradients, flat: not initialised if they were not there. Communication errors of a reduction
  // that it waits for.
  absl::StatusOr<Tensor> Open(size_t bucket);
  // A handle for operations on Open's memory.
  Tensor Lend(const Tensor& block) const { return arena_.Lend(block); }
  // Memory of a reduction's sum, where it can be no part of the whole.
  Tensor Block(int64_t elements) { return arena_.Live({elements}, dtype_); }
  // The open bucket's reduction has begun; nobody contributes to it any more.
  void Depart(size_t bucket, WorkPtr work, const Tensor& sum);
  // Waits for all reductions that have begun. Communication errors.
  absl::Status LandAll();

  // Most bytes held at once so far.
  int64_t peak_bytes() const { return peak_; }
  // Seconds spent waiting since the last call.
  double TakeWaited();

 private:
  absl::Status LandFirst();
  const ShardPlan& plan_;
  Arena& arena_;
  const DType dtype_;
  const Landed landed_;
  std::vector<Tensor> open_;  // by bucket; undefined: not open
  std::deque<Flight> under_way_;
  int64_t bytes_ = 0, peak_ = 0;
  double waited_ = 0;
};

}  // namespace shoal
