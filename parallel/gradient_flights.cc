#include "parallel/gradient_flights.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {

absl::StatusOr<Tensor> GradientFlights::Open(size_t bucket) {
  if (open_[bucket].defined()) return open_[bucket];
  while (under_way_.size() > kUnderWay) SHOAL_RETURN_IF_ERROR(LandFirst());
  open_[bucket] = arena_.Live({plan_.buckets[bucket].size}, dtype_);
  bytes_ += open_[bucket].bytes();
  peak_ = std::max(peak_, bytes_);
  return open_[bucket];
}

void GradientFlights::Depart(size_t bucket, WorkPtr work, const Tensor& sum) {
  CHECK(open_[bucket].defined()) << "a bucket is reduced once it is there";
  under_way_.push_back({bucket, std::exchange(open_[bucket], Tensor()), sum, std::move(work)});
}

absl::Status GradientFlights::LandFirst() {
  const Flight& first = under_way_.front();
  if (first.work != nullptr) {
    const double start = SteadySeconds();
    const absl::Status status = first.work->Wait();
    waited_ += SteadySeconds() - start;
    if (!status.ok()) return status;
    landed_(first);
  }
  bytes_ -= first.whole.bytes();
  under_way_.pop_front();
  return absl::OkStatus();
}

absl::Status GradientFlights::LandAll() {
  while (!under_way_.empty()) SHOAL_RETURN_IF_ERROR(LandFirst());
  return absl::OkStatus();
}

double GradientFlights::TakeWaited() { return std::exchange(waited_, 0); }

}  // namespace shoal
