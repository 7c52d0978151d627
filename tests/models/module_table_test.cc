// The gradient table: every module, in float64, against 4-point differences of its own forward; plain, recomputed, with
// deferred weight gradients, and repeated with shared weights.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "models/layers.h"
#include "models/transformer.h"
#include "models/transformer_spec.h"
#include "runtime/module/combinators.h"
#include "runtime/module/local_params.h"

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
  enum class Input { kHidden, kTokens } input = Input::kHidden;
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

  // Forward only. Dropout acts in training alone, so the training mode is used and its frames are dropped.
  double Loss(const Batch& x) {
    StepContext ctx(Options(has_loss_ ? Mode::kEval : Mode::kTrain));
    const Batch y = module_->Forward(ctx, x);
    const double loss = has_loss_ ? ctx.losses().at("loss").first : Dot(y.x);
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
    const auto numeric = [&](double& value) {
      constexpr double kStep = 4e-4;
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
    for (const Param* p : params_->params()) {
      const Tensor weight = params_->Weight(*p), grad = params_->Grad(*p).grad;
      for (int64_t i = 0; i < p->size(); i += std::max<int64_t>(1, p->size() / 7)) {
        check(weight.data<double>()[i], grad.data<double>()[i], p->name + "[" + std::to_string(i) + "]");
      }
    }
    for (int64_t i = 0; dx.defined() && i < dx.size(); i += std::max<int64_t>(1, dx.size() / 11)) {
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

std::vector<ModuleRow> Table() {
  const auto gpt = SmallConfig(TransformerConfig::GPT2), llama = SmallConfig(TransformerConfig::LLAMA);
  auto dropped = gpt;
  dropped.set_dropout(0.25);
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
      {"gpt2_recomputed", [gpt] { return std::make_unique<Transformer>(gpt, Recomputed::kBlocks); },
       ModuleRow::Input::kTokens},
      {"llama", [llama] { return std::make_unique<Transformer>(llama); }, ModuleRow::Input::kTokens},
  };
}

class ModuleTable : public testing::TestWithParam<std::tuple<ModuleRow, Variant>> {};

TEST_P(ModuleTable, GradientsEqualDifferences) {
  const auto& [row, variant] = GetParam();
  std::unique_ptr<Module> module = row.make();
  const bool tokens = row.input == ModuleRow::Input::kTokens;
  if (variant == Variant::kRecompute && !tokens) module = std::make_unique<Recompute>(std::move(module));
  if (variant == Variant::kRepeat && !tokens) module = std::make_unique<Repeat>(std::move(module), 3);
  Harness harness(std::move(module), variant == Variant::kDeferred ? GradTiming::kDeferred : GradTiming::kNow);
  harness.set_has_loss(tokens);
  const auto layout = SmallLayout();
  Tensor x;
  if (tokens) {
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

INSTANTIATE_TEST_SUITE_P(All, ModuleTable,
                         testing::Combine(testing::ValuesIn(Table()),
                                          testing::Values(Variant::kPlain, Variant::kRecompute, Variant::kDeferred,
                                                          Variant::kRepeat)),
                         RowName);

}  // namespace
}  // namespace shoal
