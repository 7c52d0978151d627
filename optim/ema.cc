#include "optim/ema.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "optim/kernels.h"

namespace shoal {

WeightEma::WeightEma(const config::EmaConfig& config, absl::Span<OwnedPiece> owned, absl::Span<Buffer* const> buffers,
                     DeviceKind device)
    : config_(config) {
  for (const OwnedPiece& piece : owned) {
    averages_.push_back({piece.param->name, piece.param->shape, piece.begin, piece.master,
                         Tensor::Zeros({piece.end - piece.begin}, DType::kF32, device)});
  }
  for (const Buffer* buffer : buffers) {
    const int64_t n = buffer->value.size();
    averages_.push_back(
        {buffer->name, buffer->value.shape(), 0, buffer->value.View({n}), Tensor::Zeros({n}, DType::kF32, device)});
  }
}

double WeightEma::Decay(const RunProgress& step, double batch_ratio) const {
  double decay = 0;
  if (config_.has_half_life()) {
    decay = std::exp2(-step.In(config_.half_life()) / Length(config_.half_life()));
  } else {
    decay = std::pow(config_.decay(), batch_ratio);
  }
  if (!config_.ramp_up()) return decay;
  const auto t = static_cast<double>(updates_);
  return std::min(decay, (1 + t) / (10 + t));
}

void WeightEma::Update(ThreadPool& pool, const RunProgress& step, double batch_ratio) {
  CHECK(holds_ == Holds::kAverages) << "averages are in the weights' place";
  ++updates_;
  const double decay = updates_ == 1 ? 0 : Decay(step, batch_ratio);
  const auto keep = static_cast<float>(decay), take = static_cast<float>(1 - decay);
  for (const Average& a : averages_) {
    pool.ParallelFor(a.average.size(), optim::kGrain, [&](int64_t begin, int64_t end) {
      optim::CombineRun(take, a.weight.data<float>() + begin, keep, end - begin, a.average.data<float>() + begin);
    });
  }
}

void WeightEma::Swap(ThreadPool& pool) {
  if (updates_ == 0) return;
  holds_ = holds_ == Holds::kAverages ? Holds::kWeights : Holds::kAverages;
  for (const Average& a : averages_) {
    pool.ParallelFor(a.average.size(), optim::kGrain, [&](int64_t begin, int64_t end) {
      std::swap_ranges(a.weight.data<float>() + begin, a.weight.data<float>() + end, a.average.data<float>() + begin);
    });
  }
}

int64_t WeightEma::bytes() const {
  int64_t total = 0;
  for (const Average& a : averages_) total += a.average.bytes();
  return total;
}

void WeightEma::VisitState(StateVisitor& visitor) {
  CHECK(holds_ == Holds::kAverages) << "averages are in the weights' place";
  if (!visitor.Has(kAverageUpdates)) {
    updates_ = 0;
    return;
  }
  visitor.Scalar(kAverageUpdates, updates_);
  for (const Average& a : averages_) {
    const std::string name = AverageName(a.name);
    visitor.TrueShape(name, a.shape);
    visitor.Shard(name, a.average, {{NumElements(a.shape)}, {a.begin}, {a.average.size()}});
  }
}

}  // namespace shoal
