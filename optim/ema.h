// WeightEma: exponential moving averages of weights and of modules' buffers (batch norm's statistics), for evaluation.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "optim/optim.pb.h"
#include "optim/schedule.h"
#include "parallel/data_parallel.h"
#include "parallel/state.h"
#include "runtime/base/thread_pool.h"
#include "runtime/module/param.h"

namespace shoal {

class WeightEma : public Stateful {
 public:
  // Averages of the fp32 masters of `owned` and of `buffers` (equal on all ranks, f32), views of both: they outlive it.
  WeightEma(const config::EmaConfig& config, absl::Span<OwnedPiece> owned, absl::Span<Buffer* const> buffers,
            DeviceKind device = DeviceKind::kCpu);

  // After every update: e = d e + (1 - d) w; the first copies w. `step` is what the step added to the run.
  void Update(ThreadPool& pool, const RunProgress& step, double batch_ratio);
  // Exchanges weights and averages: before an evaluation, and again after it. DataParallel::PublishWeights follows each
  // time. Nothing happens before the first update.
  void Swap(ThreadPool& pool);
  int64_t bytes() const;
  // "<parameter>/ema" by box of the flattened tensor, "<buffer>/ema", "ema.updates". Not while swapped. A checkpoint
  // without averages leaves them to begin at the next update.
  void VisitState(StateVisitor& visitor) override;

 private:
  enum class Holds : uint8_t { kAverages, kWeights };
  struct Average {
    std::string name;
    Shape shape;             // of the whole tensor
    int64_t begin = 0;       // of the part that is here
    Tensor weight, average;  // f32, 1-D
  };
  double Decay(const RunProgress& step, double batch_ratio) const;
  config::EmaConfig config_;
  std::vector<Average> averages_;
  int64_t updates_ = 0;
  Holds holds_ = Holds::kAverages;
};

}  // namespace shoal
