// The five combinators that compose modules. Each is a Module, so they nest.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/module/module.h"

namespace shoal {

// Children one after the other. Names appear in errors of check_numerics.
class Seq : public Module {
 public:
  Seq& Add(std::string name, std::unique_ptr<Module> child);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override;

 private:
  std::vector<std::pair<std::string, std::unique_ptr<Module>>> children_;
};

// y = x + scale inner(x).
class Residual : public Module {
 public:
  explicit Residual(std::unique_ptr<Module> inner, float scale = 1) : inner_(std::move(inner)), scale_(scale) {}
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override { inner_->VisitParams(visit); }
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override { inner_->VisitBuffers(visit); }

 private:
  std::unique_ptr<Module> inner_;
  float scale_;
};

// y = sum of branch(x) over all branches; they run in order.
class Parallel : public Module {
 public:
  Parallel& Add(std::unique_ptr<Module> branch);
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override;

 private:
  std::vector<std::unique_ptr<Module>> branches_;
};

// y = inner(inner(...(x))), `times` applications with shared weights. Random numbers differ by pass.
class Repeat : public Module {
 public:
  Repeat(std::unique_ptr<Module> inner, int times) : inner_(std::move(inner)), times_(times) {}
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override;
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override;

 private:
  std::unique_ptr<Module> inner_;
  int times_;
};

// Keeps only the input of `inner`; Backward runs inner's Forward again with the same random numbers (arXiv 1604.06174).
class Recompute : public Module {
 public:
  explicit Recompute(std::unique_ptr<Module> inner) : inner_(std::move(inner)) {}
  Batch Forward(StepContext& ctx, Batch x) override;
  Batch Backward(StepContext& ctx, Batch dy) override;
  void VisitParams(absl::FunctionRef<void(Param&)> visit) override { inner_->VisitParams(visit); }
  void VisitBuffers(absl::FunctionRef<void(Buffer&)> visit) override { inner_->VisitBuffers(visit); }

 private:
  std::unique_ptr<Module> inner_;
};

}  // namespace shoal
