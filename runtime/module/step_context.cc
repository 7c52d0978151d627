#include "runtime/module/step_context.h"

#include <glog/logging.h>

#include <cmath>
#include <cstring>

#include "runtime/base/status.h"

namespace shoal {

struct StepContext::Deferred {
  std::vector<const Param*> params;
  std::vector<Tensor> inputs;
  GradFn fn;
};

StepContext::StepContext(const Options& options) : options_(options) {
  CHECK(options.arena != nullptr && options.params != nullptr) << "StepContext needs an arena and a parameter source";
  CHECK(options.ops.pool != nullptr || dry_run()) << "StepContext needs a thread pool";
}
StepContext::~StepContext() = default;

StepContext::FrameRecord& StepContext::PushFrame() {
  frames_.emplace_back().mark = arena().FrameMark();
  return frames_.back();
}

StepContext::FrameRecord StepContext::PopFrame() {
  CHECK(!frames_.empty()) << "Backward popped a frame that no Forward pushed";
  FrameRecord frame = std::move(frames_.back());
  frames_.pop_back();
  return frame;
}

void StepContext::DropFrames(int depth) {
  CHECK_LE(depth, frame_depth()) << "frames to drop";
  if (depth == frame_depth()) return;
  const int64_t mark = frames_[depth].mark;
  frames_.resize(depth);
  arena().Rewind(mark);
}

void StepContext::WeightGrad(const Param& param, std::initializer_list<Tensor> inputs, GradFn fn) {
  WeightGrads({&param}, inputs, std::move(fn));
}

void StepContext::WeightGrads(std::initializer_list<const Param*> params, std::initializer_list<Tensor> inputs,
                              GradFn fn) {
  if (options_.grad_timing == GradTiming::kNow) {
    Contribute(absl::MakeConstSpan(params.begin(), params.size()), absl::MakeConstSpan(inputs.begin(), inputs.size()),
               fn);
    return;
  }
  Deferred deferred{params, {}, std::move(fn)};
  for (const Tensor& input : inputs) {
    Tensor kept = Tensor::Zeros(input.shape(), input.dtype(), input.device());
    deferred_bytes_ += kept.bytes();
    if (kept.dtype() != DType::kI32)
      ops::Copy(ops(), input, kept);
    else if (!kept.meta())
      std::memcpy(kept.raw(), input.raw(), static_cast<size_t>(input.bytes()));
    deferred.inputs.push_back(std::move(kept));
  }
  deferred_.push_back(std::move(deferred));
}

void StepContext::RunDeferred() {
  for (Deferred& deferred : deferred_) Contribute(deferred.params, deferred.inputs, deferred.fn);
  deferred_.clear();
  deferred_bytes_ = 0;
}

void StepContext::Contribute(absl::Span<const Param* const> params, absl::Span<const Tensor> inputs, const GradFn& fn) {
  std::vector<GradSink> sinks;
  for (const Param* param : params) sinks.push_back(options_.params->Grad(*param));
  fn(ops(), sinks, inputs);
  for (const Param* param : params) {
    CHECK_GE(param->id, 0) << param->name << " has no id: AssignIds was not called";
    if (uses_left_.size() <= static_cast<size_t>(param->id)) uses_left_.resize(param->id + 1, -1);
    int& left = uses_left_[param->id];
    if (left < 0) left = param->uses;
    CHECK_GT(left, 0) << param->name << " has " << param->uses << " uses in a micro-batch, and now one more";
    if (--left == 0) options_.params->Ready(*param);
  }
}

void StepContext::CheckNumerics(absl::string_view where, const Tensor& x) {
  if (options_.numerics == Numerics::kTrust || !x.defined() || dry_run() || x.dtype() == DType::kI32) return;
  if (ops::AllFinite(ops(), x)) return;
  throw StepAborted(absl::AbortedError(
      absl::StrCat("check_numerics: ", where, " holds a value that is not finite, ", ShapeString(x.shape()))));
}

void StepContext::SumOverRanks(absl::string_view tag, absl::Span<double> values) {
  if (options_.ranks == nullptr || dry_run()) return;
  const absl::Status status = options_.ranks->Sum(tag, values);
  if (!status.ok()) throw StepAborted(status);
}

void StepContext::AddLoss(absl::string_view name, double sum, double weight) {
  if (replaying_) return;
  auto& [total, total_weight] = losses_[std::string(name)];
  total += sum;
  total_weight += weight;
}

}  // namespace shoal
