// Loss and every gradient are those of one rank at any ZeRO stage, on any number of ranks and micro-batches, ranks
// without tokens among them; and a stage holds the memory that a dry run says.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "models/transformer.h"
#include "models/transformer_spec.h"
#include "parallel/data_parallel.h"
#include "runtime/base/status.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

using config::TransformerConfig;

std::unique_ptr<Transformer> SmallModel(Recomputed recomputed) {
  TransformerConfig c;
  c.set_preset(TransformerConfig::GPT2);
  c.set_layers(3);
  c.set_width(16);
  c.set_heads(2);
  c.set_vocabulary(40);
  c.set_dropout(0.1);
  c.set_tied_head(true);
  c.set_init_std(0.2);
  return std::make_unique<Transformer>(*ResolveTransformer(c, 16), recomputed);
}

constexpr int kLengths[] = {5, 1, 9, 3, 7, 2, 11};

Batch BatchOf(const std::vector<int>& sequences) {
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = {0};
  for (const int s : sequences) {
    layout->cu_seqlens.push_back(layout->cu_seqlens.back() + kLengths[s]);
    layout->max_len = std::max(layout->max_len, kLengths[s]);
  }
  const int64_t tokens = layout->tokens();
  const Tensor x = Tensor::Zeros({tokens}, DType::kI32);
  layout->positions = Tensor::Zeros({tokens}, DType::kI32);
  layout->labels = Tensor::Zeros({tokens}, DType::kI32);
  layout->token_counters = Tensor::Zeros({tokens}, DType::kI64);
  int64_t at = 0;
  for (const int s : sequences) {
    for (int t = 0; t < kLengths[s]; ++t, ++at) {
      x.data<int32_t>()[at] = (7 * s + 3 * t) % 40;
      layout->positions.data<int32_t>()[at] = t;
      layout->labels.data<int32_t>()[at] = (5 * s + 11 * t) % 40;
      layout->token_counters.data<int64_t>()[at] = static_cast<int64_t>(TokenCounter(s, t));
    }
  }
  return {x, std::move(layout)};
}

struct Case {
  int zero = 0, ranks = 1, micros = 1;
  DType compute = DType::kF64;
  Recomputed recomputed = Recomputed::kNothing;
  DeviceKind device = DeviceKind::kCpu;
  std::string Text() const {
    return absl::StrCat("ZeRO ", zero, ", ", ranks, " ranks, ", micros, " micro-batches, ", DTypeName(compute));
  }
};

struct Outcome {
  std::vector<std::vector<double>> gradients;  // by Param::id
  double loss = 0;
  int64_t peak = 0, later_peak = 0;  // of rank 0's arena, in the first two steps and in the third
  int64_t weights = 0, grads = 0, gathered = 0;
};

// Sequence s is of micro-batch s % micros, and of rank s / micros % (ranks - 1): the last of several ranks has none.
Outcome RunCase(const Case& c) {
  Outcome outcome;
  std::mutex mutex;
  const absl::Status status = RunThreadRanks(c.ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
    const auto model = SmallModel(c.recomputed);
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(1 << 26, c.device));
    SHOAL_ASSIGN_OR_RETURN(auto dp, DataParallel::Create(model->params(), *mesh,
                                                         {.zero_stage = c.zero,
                                                          .compute = c.compute,
                                                          .bucket_bytes = 6000,
                                                          .device = c.device,
                                                          .arena = arena.get()}));
    ThreadPool pool(1);
    dp->InitializeWeights(pool, 5);
    for (int step = 0; step < 3; ++step) {
      dp->BeginStep();
      double loss = 0;
      for (int m = 0; m < c.micros; ++m) {
        SHOAL_RETURN_IF_ERROR(
            dp->BeginMicroBatch(m + 1 == c.micros ? DataParallel::MicroBatch::kLast : DataParallel::MicroBatch::kMore));
        std::vector<int> mine;
        for (int s = 0; s < 7; ++s) {
          if (s % c.micros == m && s / c.micros % std::max(1, c.ranks - 1) == rank) mine.push_back(s);
        }
        Batch batch = BatchOf(mine);
        if (c.device == DeviceKind::kMeta) {
          auto layout = std::make_shared<SeqLayout>(*batch.layout);
          batch.x = layout->positions = layout->labels =
              Tensor::Zeros({layout->tokens()}, DType::kI32, DeviceKind::kMeta);
          layout->token_counters = Tensor::Zeros({layout->tokens()}, DType::kI64, DeviceKind::kMeta);
          batch.layout = layout;
        }
        StepContext ctx({.ops = {.pool = &pool},
                         .arena = arena.get(),
                         .params = dp.get(),
                         .compute = c.compute,
                         .seed = 3,
                         .grad_scale = 1.0 / 38});
        model->Backward(ctx, model->Forward(ctx, batch));
        loss += ctx.losses().at("loss").first;
      }
      SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
      if (step == 2 && c.device == DeviceKind::kCpu) {
        const std::lock_guard lock(mutex);
        outcome.loss += loss;
        outcome.gradients.resize(model->params().size());
        for (const OwnedPiece& piece : dp->pieces()) {
          if (c.zero == 0 && rank > 0) break;
          auto& to = outcome.gradients[piece.param->id];
          to.resize(static_cast<size_t>(piece.param->size()));
          for (int64_t e = 0; e < piece.grad.size(); ++e) {
            to[piece.begin + e] = c.compute == DType::kF64 ? piece.grad.data<double>()[e]
                                                           : static_cast<double>(piece.grad.data<float>()[e]);
          }
        }
      }
      dp->ReleaseGradients();
      SHOAL_RETURN_IF_ERROR(dp->PublishWeights(pool));
      if (rank != 0) continue;
      (step < 2 ? outcome.peak : outcome.later_peak) = arena->peak();
      if (step == 1) arena->ResetPeak();
    }
    if (rank == 0) {
      outcome.weights = dp->weight_bytes();
      outcome.grads = dp->grad_bytes();
      outcome.gathered = dp->gathered_bytes();
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << c.Text() << ": " << status;
  return outcome;
}

TEST(Zero, GradientsAreThoseOfOneRank) {
  for (const DType compute : RowsToTry<DType>({DType::kF64, DType::kF32, DType::kBF16})) {
    const Outcome one = RunCase({.compute = compute});
    double overall = 0;
    for (const auto& gradient : one.gradients) {
      for (const double g : gradient) overall = std::max(overall, std::abs(g));
    }
    for (const int zero : {0, 1, 2, 3}) {
      for (const int ranks : RowsToTry<int>({1, 2, 3, 4})) {
        for (const int micros : {1, 3}) {
          for (const Recomputed recomputed : {Recomputed::kNothing, Recomputed::kBlocks}) {
            const Case c{zero, ranks, micros, compute, recomputed};
            const Outcome got = RunCase(c);
            const double tolerance = compute == DType::kF64 ? 1e-12 : compute == DType::kF32 ? 1e-5 : 3e-2;
            EXPECT_NEAR(got.loss, one.loss, tolerance * one.loss) << c.Text();
            for (size_t p = 0; p < one.gradients.size(); ++p) {
              double largest = 0, off = 0;
              for (size_t e = 0; e < one.gradients[p].size(); ++e) {
                largest = std::max(largest, std::abs(one.gradients[p][e]));
                off = std::max(off, std::abs(got.gradients[p][e] - one.gradients[p][e]));
              }
              // Key biases have gradients of rounding alone: softmax does not see a constant.
              EXPECT_LE(off, tolerance * std::max(largest, 1e-2 * overall)) << c.Text() << ", parameter " << p;
            }
          }
        }
      }
    }
  }
}

TEST(Zero, MemoryIsThatOfTheDryRunAndStays) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int micros : {1, 3}) {
      std::vector<Outcome> stages;
      for (const int zero : {0, 1, 2, 3}) {
        Case c{.zero = zero, .ranks = 2, .micros = micros, .compute = compute};
        stages.push_back(RunCase(c));
        c.device = DeviceKind::kMeta;
        const Outcome &got = stages.back(), dry = RunCase(c);
        EXPECT_EQ(got.later_peak, dry.later_peak) << c.Text();
        EXPECT_LE(got.later_peak, got.peak) << c.Text() << ": nothing grows once orders are known";
        EXPECT_EQ(got.grads, dry.grads) << c.Text();
        EXPECT_EQ(got.gathered, dry.gathered) << c.Text();
        EXPECT_EQ(got.weights, dry.weights) << c.Text();
      }
      EXPECT_EQ(stages[1].weights, stages[0].weights);
      EXPECT_EQ(stages[2].weights, stages[0].weights);
      EXPECT_LE(stages[3].weights, stages[0].weights / 2 + 16 * 4 * 20) << "half of each bucket";
      EXPECT_LT(stages[3].weights + stages[3].gathered, stages[0].weights);
      EXPECT_LT(stages[2].grads, stages[0].grads);
      EXPECT_EQ(stages[3].grads, stages[2].grads);
    }
  }
}

}  // namespace
}  // namespace shoal
