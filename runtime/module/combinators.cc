#include "runtime/module/combinators.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace shoal {

Seq& Seq::Add(std::string name, std::unique_ptr<Module> child) {
  children_.emplace_back(std::move(name), std::move(child));
  return *this;
}

Batch Seq::Forward(StepContext& ctx, Batch x) {
  for (auto& [name, child] : children_) {
    x = child->Forward(ctx, std::move(x));
    ctx.CheckNumerics(absl::StrCat("output of ", name), x.x);
  }
  return x;
}

Batch Seq::Backward(StepContext& ctx, Batch dy) {
  for (auto at = children_.rbegin(); at != children_.rend(); ++at) {
    dy = at->second->Backward(ctx, std::move(dy));
    ctx.CheckNumerics(absl::StrCat("input gradient of ", at->first), dy.x);
  }
  return dy;
}

void Seq::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  for (auto& [name, child] : children_) child->VisitParams(visit);
}

void Seq::VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) {
  for (auto& [name, child] : children_) child->VisitBuffers(visit);
}

Batch Residual::Forward(StepContext& ctx, Batch x) {
  Batch y = inner_->Forward(ctx, x);
  if (scale_ != 1) ops::Scale(ctx.ops(), y.x, scale_);
  ops::Add(ctx.ops(), y.x, x.x, y.x);
  return y;
}

Batch Residual::Backward(StepContext& ctx, Batch dy) {
  Batch branch = dy;
  if (scale_ != 1) {
    branch.x = ctx.Live(dy.x.shape(), dy.x.dtype());
    ops::Copy(ctx.ops(), dy.x, branch.x);
    ops::Scale(ctx.ops(), branch.x, scale_);
  }
  Batch dx = inner_->Backward(ctx, std::move(branch));
  ops::Add(ctx.ops(), dx.x, dy.x, dx.x);
  return dx;
}

Parallel& Parallel::Add(std::unique_ptr<Module> branch) {
  branches_.push_back(std::move(branch));
  return *this;
}

Batch Parallel::Forward(StepContext& ctx, Batch x) {
  Batch sum;
  for (auto& branch : branches_) {
    Batch y = branch->Forward(ctx, x);
    if (sum.x.defined()) ops::Add(ctx.ops(), sum.x, y.x, y.x);
    sum = std::move(y);
  }
  return sum;
}

Batch Parallel::Backward(StepContext& ctx, Batch dy) {
  Batch sum;
  for (auto at = branches_.rbegin(); at != branches_.rend(); ++at) {
    Batch dx = (*at)->Backward(ctx, dy);
    if (sum.x.defined()) ops::Add(ctx.ops(), sum.x, dx.x, dx.x);
    sum = std::move(dx);
  }
  return sum;
}

void Parallel::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  for (auto& branch : branches_) branch->VisitParams(visit);
}

void Parallel::VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) {
  for (auto& branch : branches_) branch->VisitBuffers(visit);
}

Batch Repeat::Forward(StepContext& ctx, Batch x) {
  const uint32_t outer = ctx.pass();
  for (int i = 0; i < times_; ++i) {
    ctx.set_pass(outer * static_cast<uint32_t>(times_) + static_cast<uint32_t>(i));
    x = inner_->Forward(ctx, std::move(x));
  }
  ctx.set_pass(outer);
  return x;
}

Batch Repeat::Backward(StepContext& ctx, Batch dy) {
  const uint32_t outer = ctx.pass();
  for (int i = times_ - 1; i >= 0; --i) {
    ctx.set_pass(outer * static_cast<uint32_t>(times_) + static_cast<uint32_t>(i));
    dy = inner_->Backward(ctx, std::move(dy));
  }
  ctx.set_pass(outer);
  return dy;
}

void Repeat::VisitParams(absl::FunctionRef<void(Param&)> visit) {
  for (int i = 0; i < times_; ++i) inner_->VisitParams(visit);
}

void Repeat::VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) { inner_->VisitBuffers(visit); }

Batch Recompute::Forward(StepContext& ctx, Batch x) {
  auto& frame = ctx.PushFrame();
  frame.saved = {x.x};
  frame.object = x.layout;
  const int depth = ctx.frame_depth();
  const int64_t mark = ctx.arena().FrameMark();
  const Batch y = inner_->Forward(ctx, x);
  // The output outlives the frames below it, so it moves down once they are gone.
  const Tensor kept = ctx.Live(y.x.shape(), y.x.dtype());
  ops::Copy(ctx.ops(), y.x, kept);
  ctx.DropFrames(depth);
  ctx.arena().Rewind(mark);
  const Tensor out = ctx.Frame(kept.shape(), kept.dtype());
  ops::Copy(ctx.ops(), kept, out);
  return Batch{out, y.layout};
}

Batch Recompute::Backward(StepContext& ctx, Batch dy) {
  const auto frame = ctx.PopFrame();
  const bool replaying = ctx.replaying();
  ctx.set_replaying(true);
  inner_->Forward(ctx, Batch{frame.saved[0], std::static_pointer_cast<const SeqLayout>(frame.object)});
  ctx.set_replaying(replaying);
  Batch dx = inner_->Backward(ctx, std::move(dy));
  ctx.ReleaseFrame(frame);
  return dx;
}

}  // namespace shoal
