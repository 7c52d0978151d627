#include "launch/commands/bench_parity.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "launch/config_loader.h"
#include "launch/model_setup.h"
#include "launch/resolve.h"
#include "models/resnet.h"
#include "models/weights_file.h"
#include "parallel/checkpoint/safetensors.h"
#include "parallel/mesh.h"
#include "runtime/base/status.h"
#include "runtime/module/local_params.h"
#include "runtime/module/step_context.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/arena.h"

namespace shoal {
namespace {

// Of these batches at the initial weights, gradients in fp32 are held against float64.
constexpr int64_t kErrorBatches = 5;

// Runs the model with weights of one dtype on one thread rank, without an optimizer.
class Runner {
 public:
  Runner(ResNet& model, DataParallel& dp, Arena& arena, ThreadPool& pool, DType dtype)
      : model_(model), arena_(arena), ops_{.pool = &pool}, dtype_(dtype), params_(model.params(), dtype) {
    for (const Param* param : model.params()) ops::Copy(ops_, dp.Weight(*param), params_.Weight(*param));
  }

  nlohmann::json Logits(const Tensor& images) {
    StepContext ctx = Context(Mode::kEval, 1);
    const Tensor logits = model_.Logits(ctx, images);
    auto rows = nlohmann::json::array();
    for (int64_t i = 0; i < logits.dim(0); ++i) {
      const auto* row = logits.Rows(i, i + 1).data<float>();
      rows.push_back(std::vector<float>(row, row + logits.dim(1)));
    }
    return rows;
  }

  // Mean loss of the images; gradients are the parameters' then.
  double LossAndGradients(const Tensor& images, const Tensor& labels) {
    const auto n = static_cast<double>(labels.size());
    auto layout = std::make_shared<SeqLayout>();
    layout->labels = labels;
    layout->token_counters = Tensor::Zeros({labels.size()}, DType::kI64);
    params_.BeginStep();
    StepContext ctx = Context(Mode::kTrain, 1 / n);
    model_.Backward(ctx, model_.Forward(ctx, {images, layout}));
    return ctx.losses().at("loss").first / n;
  }

  void Descend(double rate) {
    for (const Param* param : model_.params()) {
      auto* weight = params_.Weight(*param).data<double>();
      const auto* grad = Grad(*param).data<double>();
      for (int64_t i = 0; i < param->size(); ++i) weight[i] -= rate * grad[i];
    }
  }

  Tensor Grad(const Param& param) { return params_.Grad(param).grad; }

 private:
  StepContext Context(Mode mode, double grad_scale) {
    return StepContext(
        {.ops = ops_, .arena = &arena_, .params = &params_, .compute = dtype_, .mode = mode, .grad_scale = grad_scale});
  }

  ResNet& model_;
  Arena& arena_;
  OpContext ops_;
  DType dtype_;
  LocalParams params_;
};

double RelativeError(const Tensor& single, const Tensor& whole) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < whole.size(); ++i) {
    const double w = whole.data<double>()[i], d = static_cast<double>(single.data<float>()[i]) - w;
    difference += d * d;
    norm += w * w;
  }
  return std::sqrt(difference / norm);
}

absl::StatusOr<Tensor> Find(const SafetensorsFile& file, const std::string& path, const std::string& name, DType dtype,
                            size_t dims) {
  const auto at = file.entries().find(name);
  if (at == file.entries().end() || at->second.dtype != dtype || at->second.shape.size() != dims)
    return absl::DataLossError(
        absl::StrCat(path, ": '", name, "' of ", dims, " dimensions is not there as ", DTypeName(dtype)));
  return file.View(at->second);
}

}  // namespace

absl::Status BenchParity(const BenchArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const auto loaded, LoadJob(args.job.job, args.job.sets));
  SHOAL_ASSIGN_OR_RETURN(const config::Job job, ResolveJob(loaded, 1));
  if (!job.model().has_resnet() || !job.model().has_initial_weights())
    return absl::InvalidArgumentError("bench parity takes a job with model.resnet and model.initial_weights");
  const std::string path = args.folder + "/images.safetensors";
  SHOAL_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  SHOAL_ASSIGN_OR_RETURN(const Tensor images, Find(*file, path, "images", DType::kF32, 5));
  SHOAL_ASSIGN_OR_RETURN(const Tensor labels, Find(*file, path, "labels", DType::kI32, 2));
  const auto images_of = [&](int64_t step) {
    return images.Rows(step, step + 1).View({images.dim(1), images.dim(2), images.dim(3), images.dim(4)});
  };
  const auto labels_of = [&](int64_t step) { return labels.Rows(step, step + 1).View({labels.dim(1)}); };

  ResNet model(job.model().resnet(), Recomputed::kNothing);
  ThreadPool pool(args.threads);
  const auto world = FakeWorld(0, 1);
  SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(*world, {}));
  SHOAL_ASSIGN_OR_RETURN(const auto dp, DataParallel::Create(model.params(), *mesh, {}));
  SHOAL_RETURN_IF_ERROR(LoadWeights(job.model().initial_weights(), job.model(), model, pool, *dp));
  SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(int64_t{64} << 30, DeviceKind::kCpu));

  Runner single(model, *dp, *arena, pool, DType::kF32), whole(model, *dp, *arena, pool, DType::kF64);
  nlohmann::json report = {{"logits", single.Logits(images_of(0))}};
  for (int64_t batch = 0; batch < std::min(kErrorBatches, images.dim(0)); ++batch) {
    single.LossAndGradients(images_of(batch), labels_of(batch));
    whole.LossAndGradients(images_of(batch), labels_of(batch));
    for (const Param* param : model.params())
      report["gradient_errors"][param->name].push_back(RelativeError(single.Grad(*param), whole.Grad(*param)));
  }
  for (int64_t step = 0; step < images.dim(0); ++step) {
    report["losses"].push_back(whole.LossAndGradients(images_of(step), labels_of(step)));
    whole.Descend(job.optim().learning_rate());
  }
  std::cout << report.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
