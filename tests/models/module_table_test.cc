// The gradient table: every module, in float64, against 4-point differences of its own forward; plain, recomputed, with
// deferred weight gradients, and repeated with shared weights.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "models/layers.h"
#include "models/resnet.h"
#include "models/resnet_spec.h"
#include "models/transformer.h"
#include "models/transformer_spec.h"
#include "runtime/module/combinators.h"
#include "runtime/module/local_params.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

using config::TransformerConfig;

TransformerConfig SmallConfig(TransformerConfig::Preset preset) {
  TransformerConfig c;
  c.set_preset(preset);
  c.set_layers(2);
  c.set_width(12);
  c.set_heads(preset == TransformerConfig::GPT2 ? 2 : 3);
  if (preset == TransformerConfig::LLAMA) {
    c.set_kv_heads(1);
    c.set_qk_norm(true);
  }
  c.set_ffn(20);
  c.set_vocabulary(13);
  c.set_init_std(0.3);
  return *ResolveTransformer(c, 16);
}

std::shared_ptr<SeqLayout> SmallLayout() {
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = {0, 5, 6, 14};
  const int64_t tokens = 14;
  layout->positions = Tensor::Zeros({tokens}, DType::kI32);
  layout->labels = Tensor::Zeros({tokens}, DType::kI32);
  layout->token_counters = Tensor::Zeros({tokens}, DType::kI64);
  for (int i = 0; i < tokens; ++i) {
    const int s = i < 5 ? 0 : i < 6 ? 1 : 2;
    layout->positions.data<int32_t>()[i] = i - layout->cu_seqlens[s];
    layout->labels.data<int32_t>()[i] = i % 4 == 3 ? -1 : (5 * i) % 13;
    layout->token_counters.data<int64_t>()[i] = static_cast<int64_t>(TokenCounter(s, i - layout->cu_seqlens[s]));
  }
  layout->max_len = 8;
  return layout;
}

struct ModuleRow {
  std::string name;
  std::function<std::unique_ptr<Module>()> make;
  enum class Input { kHidden, kTokens, kImages } input = Input::kHidden;
  Shape images = {};                               // of kImages
  enum class Loss { kNo, kYes } loss = Loss::kNo;  // the module adds its own; kTokens always do
};
enum class Variant { kPlain, kRecompute, kDeferred, kRepeat };

// A module under test: its output's loss is sum(output * c) for fixed random c, or what the head adds.
class Harness {
 public:
  Harness(std::unique_ptr<Module> module, GradTiming timing) : module_(std::move(module)), pool_(1), timing_(timing) {
    arena_ = *Arena::Create(1 << 26, DeviceKind::kCpu);
    std::vector<const Param*> params;
    for (Param* p : AssignIds(*module_)) params.push_back(p);
    params_ = std::make_unique<LocalParams>(params, DType::kF64);
    params_->Initialize(pool_, 3);
    // Vectors start at zeros and ones; gradients there would hide errors.
    for (const Param* p : params) {
      const Rng rng({11, RngPurpose::kTest, NameHash(p->name)});
      if (p->param_class != ParamClass::kVector) continue;
      for (int64_t i = 0; i < p->size(); ++i)
        params_->Weight(*p).data<double>()[i] += 0.3 * rng.Normal(1, static_cast<uint64_t>(i));
    }
  }

  StepContext::Options Options(Mode mode) {
    return {.ops = {.pool = &pool_},
            .arena = arena_.get(),
            .params = params_.get(),
            .compute = DType::kF64,
            .seed = 5,
            .mode = mode,
            .grad_timing = timing_,
            .grad_scale = 1};
  }

  double Dot(const Tensor& y) {
    const Rng rng({12, RngPurpose::kTest, 1});
    double sum = 0;
    for (int64_t i = 0; i < y.size(); ++i) sum += y.data<double>()[i] * rng.Normal(0, static_cast<uint64_t>(i));
    return sum;
  }

  // Forward only, in the training mode: dropout and batch statistics act there alone. Modules with a loss of their own
  // add it in backward.
  double Loss(const Batch& x) {
    params_->BeginStep();
    StepContext ctx(Options(Mode::kTrain));
    const Batch y = module_->Forward(ctx, x);
    if (has_loss_) {
      module_->Backward(ctx, y);
      ctx.RunDeferred();
      return ctx.losses().at("loss").first;
    }
    const double loss = Dot(y.x);
    ctx.DropFrames(0);
    arena_->Rewind(0);
    return loss;
  }

  Tensor Gradients(const Batch& x) {
    params_->BeginStep();
    StepContext ctx(Options(Mode::kTrain));
    const Batch y = module_->Forward(ctx, x);
    Tensor dy = Tensor::Zeros(y.x.shape(), DType::kF64);
    const Rng rng({12, RngPurpose::kTest, 1});
    for (int64_t i = 0; i < dy.size(); ++i) dy.data<double>()[i] = rng.Normal(0, static_cast<uint64_t>(i));
    const Batch dx = module_->Backward(ctx, {dy, y.layout});
    ctx.RunDeferred();
    EXPECT_EQ(ctx.frame_depth(), 0) << "Backward left frames";
    EXPECT_EQ(arena_->FrameMark(), 0) << "Backward left frame memory";
    Tensor kept;
    if (dx.x.defined()) {
      kept = Tensor::Zeros(dx.x.shape(), DType::kF64);
      std::copy_n(dx.x.data<double>(), dx.x.size(), kept.data<double>());
    }
    return kept;
  }

  void CheckAgainstDifferences(const Batch& x) {
    const Tensor dx = Gradients(x);
    EXPECT_EQ(params_->ready().size(), params_->params().size()) << "each parameter is ready once";
    std::vector<Tensor> grads;  // the differences' own backward passes write over them
    for (const Param* p : params_->params()) {
      grads.push_back(Tensor::Zeros(p->shape, DType::kF64));
      const Tensor grad = params_->Grad(*p).grad;
      std::copy_n(grad.data<double>(), grad.size(), grads.back().data<double>());
    }
    const auto numeric = [&](double& value) {
      const double kStep = x.x.rank() == 4 ? 2e-6 : 4e-4;  // small enough that hardly a ReLU changes its side
      const double at = value;
      double f[4];
      const double offsets[4] = {-2, -1, 1, 2};
      for (int i = 0; i < 4; ++i) {
        value = at + offsets[i] * kStep;
        f[i] = Loss(x);
      }
      value = at;
      return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * kStep);
    };
    const auto check = [&](double& value, double got, const std::string& what) {
      const double want = numeric(value);
      EXPECT_NEAR(got, want, 1e-7 * std::max(1.0, std::abs(want))) << what;
    };
    // Of each tensor. Every difference is four more forward passes.
    constexpr int64_t kOfParam = kThreadSanitizer ? 1 : 7, kOfInput = kThreadSanitizer ? 1 : 11;
    for (const Param* p : params_->params()) {
      const Tensor weight = params_->Weight(*p), grad = grads[static_cast<size_t>(p->id)];
      for (int64_t i = 0; i < p->size(); i += std::max<int64_t>(1, p->size() / kOfParam)) {
        check(weight.data<double>()[i], grad.data<double>()[i], p->name + "[" + std::to_string(i) + "]");
      }
    }
    for (int64_t i = 0; dx.defined() && i < dx.size(); i += std::max<int64_t>(1, dx.size() / kOfInput)) {
      check(x.x.data<double>()[i], dx.data<double>()[i], "x[" + std::to_string(i) + "]");
    }
  }

  void set_has_loss(bool has) { has_loss_ = has; }

 private:
  std::unique_ptr<Module> module_;
  ThreadPool pool_;
  GradTiming timing_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<LocalParams> params_;
  bool has_loss_ = false;
};

config::ResNetConfig SmallResNet(config::ResNetConfig::Block block) {
  config::ResNetConfig c;
  c.set_preset(config::ResNetConfig::CUSTOM);
  c.set_block(block);
  c.set_stem(config::ResNetConfig::CIFAR);
  c.add_depths(1);
  c.add_depths(1);
  c.set_width(4);
  c.set_classes(5);
  c.set_image_size(6);
  c.set_channels(3);
  c.set_label_smoothing(0.1);
  return *ResolveResNet(c, {});
}

std::vector<ModuleRow> ImageTable() {
  using config::ResNetConfig;
  using Input = ModuleRow::Input;
  const ResNetConfig basic = SmallResNet(ResNetConfig::BASIC), bottleneck = SmallResNet(ResNetConfig::BOTTLENECK);
  ResNetConfig rs = bottleneck, grouped = bottleneck;
  rs.set_squeeze_excite(0.25);
  rs.set_shortcut(ResNetConfig::AVERAGE_POOL);
  grouped.set_groups(2);
  const auto stem = [&](const char* name, ResNetConfig::Stem kind) {
    ResNetConfig c = basic;
    c.set_stem(kind);
    return ModuleRow{name, [c] { return MakeResNetStem(c); }, Input::kImages, {2, 9, 9, 3}};
  };
  const auto block = [](const char* name, const ResNetConfig& c, const BlockShape& b) {
    return ModuleRow{name, [c, b] { return MakeResNetBlock(c, b); }, Input::kImages, {3, 5, 5, b.in}};
  };
  const auto whole = [](const char* name, const ResNetConfig& c, Recomputed recomputed = Recomputed::kNothing) {
    return ModuleRow{name,
                     [c, recomputed] { return std::make_unique<ResNet>(c, recomputed); },
                     Input::kImages,
                     {4, 6, 6, 3},
                     ModuleRow::Loss::kYes};
  };
  return {
      stem("resnet_stem_cifar", ResNetConfig::CIFAR),
      stem("resnet_stem_imagenet", ResNetConfig::IMAGENET),
      stem("resnet_stem_rs", ResNetConfig::RS),
      block("resnet_basic", basic, {"b", 4, 4, 4, 1, 0}),
      block("resnet_basic_strided", basic, {"b", 4, 8, 8, 2, 0}),
      block("resnet_bottleneck", bottleneck, {"b", 16, 4, 16, 1, 0}),
      block("resnet_bottleneck_grouped", grouped, {"b", 4, 4, 16, 2, 0}),
      block("resnet_squeezed", rs, {"b", 16, 4, 16, 1, 0}),
      block("resnet_squeezed_pooled_dropped", rs, {"b", 4, 4, 16, 2, 0.4}),
      block("resnet_dropped", basic, {"b", 4, 4, 4, 1, 0.4}),
      {"resnet_head",
       [basic] { return MakeResNetHead(basic, 6); },
       Input::kImages,
       {4, 2, 2, 6},
       ModuleRow::Loss::kYes},
      whole("resnet", basic),
      whole("resnet_rs", rs),
      whole("resnet_recomputed", bottleneck, Recomputed::kBlocks),
  };
}

std::vector<ModuleRow> Table() {
  const auto gpt = SmallConfig(TransformerConfig::GPT2), llama = SmallConfig(TransformerConfig::LLAMA);
  auto dropped = gpt;
  dropped.set_dropout(0.25);
  const WidthMultipliers multipliers{.attention = 1.75, .readout = 0.25, .residual = 0.625};
  const auto seq = [gpt, llama] {
    auto s = std::make_unique<Seq>();
    s->Add("a", std::make_unique<Residual>(std::make_unique<MlpBlock>("a", gpt)));
    s->Add("b", std::make_unique<AttentionBlock>("b", llama));
    return s;
  };
  return {
      {"norm_layer", [gpt] { return std::make_unique<NormLayer>("n", gpt); }},
      {"norm_rms", [llama] { return std::make_unique<NormLayer>("n", llama); }},
      {"attention_gpt2", [gpt] { return std::make_unique<AttentionBlock>("a", gpt); }},
      {"attention_llama_gqa_qknorm", [llama] { return std::make_unique<AttentionBlock>("a", llama); }},
      {"mlp_gelu", [gpt] { return std::make_unique<MlpBlock>("m", gpt); }},
      {"mlp_swiglu", [llama] { return std::make_unique<MlpBlock>("m", llama); }},
      {"mlp_swiglu_recomputed",
       [llama] { return std::make_unique<MlpBlock>("m", llama, MlpBlock::Inner::kRecompute); }},
      {"dropout", [] { return std::make_unique<DropoutLayer>("d", 0.4f); }},
      {"seq", seq},
      {"parallel",
       [gpt, llama] {
         auto p = std::make_unique<Parallel>();
         p->Add(std::make_unique<MlpBlock>("a", gpt)).Add(std::make_unique<MlpBlock>("b", llama));
         return p;
       }},
      {"nested_recompute_repeat",
       [seq] { return std::make_unique<Repeat>(std::make_unique<Recompute>(std::make_unique<Recompute>(seq())), 2); }},
      {"gpt2", [gpt] { return std::make_unique<Transformer>(gpt); }, ModuleRow::Input::kTokens},
      {"gpt2_mlps_recomputed", [gpt] { return std::make_unique<Transformer>(gpt, Recomputed::kMlps); },
       ModuleRow::Input::kTokens},
      {"gpt2_first_mlp_recomputed",
       [gpt] { return std::make_unique<Transformer>(gpt, Recomputation(Recomputed::kMlps, 1)); },
       ModuleRow::Input::kTokens},
      {"gpt2_recomputed", [gpt] { return std::make_unique<Transformer>(gpt, Recomputed::kBlocks); },
       ModuleRow::Input::kTokens},
      {"gpt2_multipliers",
       [gpt, multipliers] { return std::make_unique<Transformer>(gpt, Recomputed::kBlocks, multipliers); },
       ModuleRow::Input::kTokens},
      {"llama_multipliers",
       [llama, multipliers] { return std::make_unique<Transformer>(llama, Recomputed::kNothing, multipliers); },
       ModuleRow::Input::kTokens},
      {"residual_scaled", [gpt] { return std::make_unique<Residual>(std::make_unique<MlpBlock>("m", gpt), 0.375f); }},
      {"llama", [llama] { return std::make_unique<Transformer>(llama); }, ModuleRow::Input::kTokens},
  };
}

class ModuleTable : public testing::TestWithParam<std::tuple<ModuleRow, Variant>> {};

TEST_P(ModuleTable, GradientsEqualDifferences) {
  const auto& [row, variant] = GetParam();
  std::unique_ptr<Module> module = row.make();
  const bool tokens = row.input == ModuleRow::Input::kTokens;
  const bool images = row.input == ModuleRow::Input::kImages, loss = tokens || row.loss == ModuleRow::Loss::kYes;
  if (variant == Variant::kRecompute && !loss) module = std::make_unique<Recompute>(std::move(module));
  if (variant == Variant::kRepeat && !loss && !images) module = std::make_unique<Repeat>(std::move(module), 3);
  Harness harness(std::move(module), variant == Variant::kDeferred ? GradTiming::kDeferred : GradTiming::kNow);
  harness.set_has_loss(loss);
  auto layout = SmallLayout();
  Tensor x;
  if (images) {
    x = Tensor::Zeros(row.images, DType::kF64);
    const Rng rng({13, RngPurpose::kTest, 2});
    for (int64_t i = 0; i < x.size(); ++i) x.data<double>()[i] = rng.Normal(0, static_cast<uint64_t>(i));
    layout = std::make_shared<SeqLayout>();
    layout->labels = Tensor::Zeros({x.dim(0)}, DType::kI32);
    layout->token_counters = Tensor::Zeros({x.dim(0)}, DType::kI64);
    for (int64_t i = 0; i < x.dim(0); ++i) {
      layout->labels.data<int32_t>()[i] = static_cast<int32_t>(i == 1 ? -1 : (2 * i) % 5);
      layout->token_counters.data<int64_t>()[i] = static_cast<int64_t>(TokenCounter(i + 7, 0));
    }
  } else if (tokens) {
    x = Tensor::Zeros({14}, DType::kI32);
    for (int i = 0; i < 14; ++i) x.data<int32_t>()[i] = (3 * i + 1) % 13;
  } else {
    x = Tensor::Zeros({14, 12}, DType::kF64);
    const Rng rng({13, RngPurpose::kTest, 2});
    for (int64_t i = 0; i < x.size(); ++i) x.data<double>()[i] = rng.Normal(0, static_cast<uint64_t>(i));
  }
  harness.CheckAgainstDifferences({x, layout});
}

std::string RowName(const testing::TestParamInfo<std::tuple<ModuleRow, Variant>>& info) {
  static const char* const kNames[] = {"plain", "recompute", "deferred", "repeat"};
  return std::get<0>(info.param).name + "_" + kNames[static_cast<int>(std::get<1>(info.param))];
}

INSTANTIATE_TEST_SUITE_P(Images, ModuleTable,
                         testing::Combine(testing::ValuesIn(ImageTable()),
                                          testing::Values(Variant::kPlain, Variant::kRecompute, Variant::kDeferred)),
                         RowName);
INSTANTIATE_TEST_SUITE_P(All, ModuleTable,
                         testing::Combine(testing::ValuesIn(Table()),
                                          testing::Values(Variant::kPlain, Variant::kRecompute, Variant::kDeferred,
                                                          Variant::kRepeat)),
                         RowName);

}  // namespace
}  // namespace shoal
