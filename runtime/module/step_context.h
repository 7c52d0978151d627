// StepContext: everything one micro-batch needs while it runs forward and backward. Belongs to one rank's main thread.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/base/rng.h"
#include "runtime/module/param.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/arena.h"

namespace shoal {

enum class Mode : uint8_t { kTrain, kEval };          // kEval: no dropout
enum class GradTiming : uint8_t { kNow, kDeferred };  // when ctx.WeightGrad's functions run
enum class Numerics : uint8_t {
  kTrust,
  kCheck
};  // kCheck: values and gradients between modules are searched for NaN and infinity

// Sums values over the ranks that a module's statistics span (synchronised batch norm).
class RankSum {
 public:
  virtual ~RankSum() = default;
  // Collective, in program order; every rank calls it for every micro-batch. `values` becomes the sum in rank order.
  virtual absl::Status Sum(absl::string_view tag, absl::Span<double> values) = 0;
};

class StepContext {
 public:
  struct Options {
    OpContext ops;                  // threads, cost sheet of a dry run
    Arena* arena = nullptr;         // not owned
    ParamSource* params = nullptr;  // not owned
    RankSum* ranks = nullptr;       // null: this rank alone; not owned
    DType compute = DType::kF32;
    uint64_t seed = 0;  // of the run
    Mode mode = Mode::kTrain;
    GradTiming grad_timing = GradTiming::kNow;
    Numerics numerics = Numerics::kTrust;
    double grad_scale = 1;  // of the loss: 1 / global token count, times the loss scale
  };
  explicit StepContext(const Options& options);
  ~StepContext();

  OpContext& ops() { return options_.ops; }
  Arena& arena() { return *options_.arena; }
  const Arena& arena() const { return *options_.arena; }
  DType compute() const { return options_.compute; }
  DType stats_dtype() const { return options_.compute == DType::kF64 ? DType::kF64 : DType::kF32; }
  Mode mode() const { return options_.mode; }
  double grad_scale() const { return options_.grad_scale; }
  bool dry_run() const { return arena().device() == DeviceKind::kMeta; }

  // --- Frames. A module brackets Forward with PushFrame and stores what Backward needs; Backward takes it back with
  // PopFrame. Frame memory made between the matching PushFrame and PopFrame is freed by ReleaseFrame.
  struct FrameRecord {
    int64_t mark = 0;  // arena position at PushFrame
    std::vector<Tensor> saved;
    std::vector<int64_t> numbers;        // decisions (routing counts, repeat index)
    std::shared_ptr<const void> object;  // anything else: a layout
  };
  // Opens a frame; store into the returned record before the next PushFrame.
  FrameRecord& PushFrame();
  // The youngest frame, removed from the stack. Its memory stays valid until ReleaseFrame(record).
  FrameRecord PopFrame();
  // Drops all frames above `depth` and their memory (Recompute).
  void DropFrames(int depth);
  // Frees the arena memory of a popped frame (and everything pushed after it).
  void ReleaseFrame(const FrameRecord& frame) { arena().Rewind(frame.mark); }
  int frame_depth() const { return static_cast<int>(frames_.size()); }

  // Memory: on the frame stack (outputs, what is kept), or live (temporaries, dx).
  Tensor Frame(Shape shape, DType dtype) { return arena().Frame(std::move(shape), dtype); }
  Tensor Live(Shape shape, DType dtype) { return arena().Live(std::move(shape), dtype); }

  // --- Weights and gradients.
  Tensor Weight(const Param& param) { return options_.params->Weight(param); }
  // Runs fn(sink, inputs) now, or later with copies of `inputs` that outlive the frame (WeightGrads::kDeferred). The
  // parameter is Ready after its last use in this micro-batch's backward.
  using GradFn = std::function<void(OpContext&, absl::Span<const GradSink>, absl::Span<const Tensor>)>;
  void WeightGrad(const Param& param, std::initializer_list<Tensor> inputs, GradFn fn);
  // One function for several parameters at once (norm weight and bias): sinks in the order of `params`.
  void WeightGrads(std::initializer_list<const Param*> params, std::initializer_list<Tensor> inputs, GradFn fn);
  // For a gradient that comes out of the computation of dx itself, and so cannot wait.
  void WeightGradNow(const Param& param, const GradFn& fn) {
    const Param* const one = &param;
    Contribute(absl::MakeConstSpan(&one, 1), {}, fn);
  }
  // Runs what was deferred, in order. Called by the executor after backward (or in a pipeline's bubble).
  void RunDeferred();
  int64_t deferred_bytes() const { return deferred_bytes_; }

  // With Numerics::kCheck: throws StepAborted (diverged) when `x` holds a NaN or an infinity; `where` names the module.
  void CheckNumerics(absl::string_view where, const Tensor& x);

  // `values` becomes its sum over ranks; unchanged when there is one. Throws StepAborted when communication fails.
  void SumOverRanks(absl::string_view tag, absl::Span<double> values);

  // Seconds that modules waited for other ranks.
  void AddWaited(double seconds) { waited_seconds_ += seconds; }
  double waited_seconds() const { return waited_seconds_; }

  // --- Losses: summed over micro-batches by the caller. `weight` is what the sum will be divided by (tokens).
  void AddLoss(absl::string_view name, double sum, double weight);
  const std::map<std::string, std::pair<double, double>>& losses() const { return losses_; }

  // --- Randomness and replay.
  // Key of a layer's random numbers: (run seed, purpose, name, Repeat pass).
  RngKey Random(RngPurpose purpose, absl::string_view name) const {
    return {options_.seed, purpose, NameHash(name), pass_};
  }
  uint32_t pass() const { return pass_; }
  void set_pass(uint32_t pass) { pass_ = pass; }
  // True while Recompute runs Forward again: nothing that counts (statistics, losses, loads) may be updated.
  bool replaying() const { return replaying_; }
  void set_replaying(bool replaying) { replaying_ = replaying; }

 private:
  struct Deferred;
  void Contribute(absl::Span<const Param* const> params, absl::Span<const Tensor> inputs, const GradFn& fn);
  Options options_;
  std::vector<FrameRecord> frames_;
  std::vector<Deferred> deferred_;
  std::vector<int> uses_left_;  // by Param::id, -1 = not yet seen in this micro-batch
  int64_t deferred_bytes_ = 0;
  double waited_seconds_ = 0;
  std::map<std::string, std::pair<double, double>> losses_;
  uint32_t pass_ = 0;
  bool replaying_ = false;
};

}  // namespace shoal
