#include "optim/ema.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace shoal {
namespace {

// Two pieces of a parameter and a buffer, all of whose elements have one value.
class EmaTest : public testing::Test {
 protected:
  EmaTest() {
    Set(1, 1);
    owned_ = {{&param_, 0, 4, weights_.Rows(0, 4), {}}, {&param_, 4, 10, weights_.Rows(4, 10), {}}};
  }
  void Set(float weight, float statistic) {
    for (float& w : weights_.span<float>()) w = weight;
    for (float& b : buffer_.value.span<float>()) b = statistic;
  }
  WeightEma Make(const config::EmaConfig& config) { return WeightEma(config, absl::MakeSpan(owned_), buffers_); }

  Param param_{.name = "w", .shape = {5, 2}, .id = 0};
  Tensor weights_ = Tensor::Zeros({10}, DType::kF32);
  Buffer buffer_{"bn.mean", Tensor::Zeros({3}, DType::kF32)};
  std::vector<Buffer*> buffers_ = {&buffer_};
  std::vector<OwnedPiece> owned_;
  ThreadPool pool_{2};
};

TEST_F(EmaTest, AveragesWeightsAndBuffersAndSwapsThemIn) {
  config::EmaConfig config;
  config.set_decay(0.75);
  WeightEma ema = Make(config);
  EXPECT_EQ(ema.bytes(), 13 * 4);
  Set(5, 5);
  ema.Swap(pool_);
  EXPECT_EQ(weights_.data<float>()[0], 5) << "no average before the first update";
  double w = 8, b = 80;
  Set(8, 80);
  ema.Update(pool_, {.steps = 1}, 1);
  for (int t = 1; t < 6; ++t) {
    Set(static_cast<float>(8 + t), static_cast<float>(80 + t));
    ema.Update(pool_, {.steps = 1}, 1);
    w = 0.75 * w + 0.25 * (8 + t);
    b = 0.75 * b + 0.25 * (80 + t);
  }
  ema.Swap(pool_);
  for (const float v : weights_.span<float>()) EXPECT_NEAR(v, w, 1e-5);
  for (const float v : buffer_.value.span<float>()) EXPECT_NEAR(v, b, 1e-4);
  ema.Swap(pool_);
  for (const float v : weights_.span<float>()) EXPECT_EQ(v, 13);
}

TEST_F(EmaTest, TimeScalesInSamples) {
  // Half of the first weight is left after 100 samples, in any number of steps.
  for (const int64_t samples : {100, 25, 10}) {
    config::EmaConfig config;
    config.mutable_half_life()->set_samples(100);
    WeightEma ema = Make(config);
    Set(1, 1);
    ema.Update(pool_, {.steps = 1, .samples = samples}, 1);
    Set(0, 0);
    for (int64_t done = 0; done < 100; done += samples) ema.Update(pool_, {.steps = 1, .samples = samples}, 1);
    ema.Swap(pool_);
    EXPECT_NEAR(weights_.data<float>()[7], 0.5, 1e-6) << samples;
  }
  config::EmaConfig config;
  config.set_decay(0.81);
  WeightEma ema = Make(config);
  Set(1, 1);
  ema.Update(pool_, {.steps = 1}, 0.5);
  Set(0, 0);
  ema.Update(pool_, {.steps = 1}, 0.5);
  ema.Swap(pool_);
  EXPECT_NEAR(weights_.data<float>()[0], 0.9, 1e-6);
}

TEST_F(EmaTest, RampUpForgetsTheStart) {
  config::EmaConfig config;
  config.set_decay(0.999);
  config.set_ramp_up(true);
  WeightEma ema = Make(config);
  Set(1, 1);
  ema.Update(pool_, {.steps = 1}, 1);
  Set(0, 0);
  ema.Update(pool_, {.steps = 1}, 1);
  ema.Swap(pool_);
  EXPECT_NEAR(weights_.data<float>()[0], 3.0 / 12, 1e-6);
}

// Holds what a visit shows, and gives it to the next.
struct Shelf : StateVisitor {
  void Shard(absl::string_view name, const Tensor& local, const Box& box) override {
    for (int64_t i = 0; i < local.size(); ++i) {
      float& kept = values[std::string(name)][box.offset[0] + i];
      (saving ? kept : local.data<float>()[i]) = saving ? local.data<float>()[i] : kept;
    }
  }
  void Scalar(absl::string_view name, int64_t& value) override {
    (saving ? integers[std::string(name)] : value) = saving ? value : integers[std::string(name)];
  }
  void Scalar(absl::string_view, double&) override {}
  void Blob(absl::string_view, std::string&) override {}
  bool saving = true;
  std::map<std::string, std::map<int64_t, float>> values;
  std::map<std::string, int64_t> integers;
};

TEST_F(EmaTest, ResumesOnOtherPieces) {
  config::EmaConfig config;
  config.set_decay(0.5);
  WeightEma ema = Make(config);
  Set(4, 4);
  ema.Update(pool_, {.steps = 1}, 1);
  Shelf shelf;
  ema.VisitState(shelf);
  EXPECT_EQ(shelf.values["w/ema"].size(), 10);
  EXPECT_EQ(shelf.values["bn.mean/ema"].size(), 3);
  owned_ = {{&param_, 0, 10, weights_, {}}};
  WeightEma resumed = Make(config);
  shelf.saving = false;
  resumed.VisitState(shelf);
  Set(0, 0);
  resumed.Update(pool_, {.steps = 1}, 1);
  resumed.Swap(pool_);
  for (const float v : weights_.span<float>()) EXPECT_EQ(v, 2);
}

}  // namespace
}  // namespace shoal
