// Gradients that travel encoded: nothing is lost over steps, skips, checkpoints and changes of rank count.
#include "parallel/gradient_codecs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "parallel/checkpoint/checkpoint_store.h"
#include "parallel/data_parallel.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "tests/parallel/pointers.h"

namespace shoal {
namespace {

using config::CompressionConfig;
using testing::HasSubstr;

std::vector<Param> CodedParams() {
  std::vector<Param> params;
  const std::vector<std::pair<std::string, Shape>> shapes = {
      {"first.weight", {7, 50}}, {"first.bias", {30}}, {"second.weight", {64, 33}}, {"last.weight", {129, 9}}};
  for (const auto& [name, shape] : shapes)
    params.push_back({.name = name, .shape = shape, .id = static_cast<int>(params.size())});
  params[0].param_class = ParamClass::kEmbedding;
  return params;
}

CompressionConfig Uniform(const std::string& codec) {
  CompressionConfig config;
  config.set_mode(CompressionConfig::UNIFORM);
  config.set_codec(codec);
  config.set_block(64);
  config.set_min_elements(100);
  return config;
}

float CodedGrad(int rank, int64_t step, int param, int64_t i) {
  return Rng({3, RngPurpose::kTest, static_cast<uint64_t>(param)})
      .Normal(static_cast<uint64_t>(rank * 1000 + step), static_cast<uint64_t>(i));
}

// Sums over ranks, by parameter and element.
struct Books {
  std::mutex mutex;
  std::map<std::string, std::vector<double>> in, out, left;
};
void AddTo(std::map<std::string, std::vector<double>>& book, const Param& param, int64_t begin, const Tensor& values) {
  auto& sums = book[param.name];
  sums.resize(static_cast<size_t>(param.size()));
  const float* from = values.data<float>();
  for (int64_t i = 0; i < values.size(); ++i) sums[begin + i] += static_cast<double>(from[i]);
}

// Reads what a DataParallel holds in residuals.
class ResidualReader : public StateVisitor {
 public:
  ResidualReader(Books& books, const std::vector<Param>& params) : books_(books), params_(params) {}
  void Shard(absl::string_view name, const Tensor& local, const Box&) override {
    for (const Param& param : params_) {
      if (name == param.name + "/residual") AddTo(books_.left, param, 0, local);
    }
  }
  void Scalar(absl::string_view, int64_t&) override {}
  void Scalar(absl::string_view, double&) override {}
  void Blob(absl::string_view, std::string&) override {}

 private:
  Books& books_;
  const std::vector<Param>& params_;
};

struct Plan {
  int ranks = 3, zero = 1;
  CompressionConfig config = Uniform("q4");
  int64_t from_step = 0, steps = 5;
  int micros = 1;
  int64_t skipped = -1;                // this step is not taken
  std::vector<double> rates = {};      // learning rates, by step; empty: unknown
  std::string load = {}, save = {};    // folders of checkpoints; empty: none
  std::vector<float>* last = nullptr;  // the last sum, of rank 0
};

absl::Status RunSteps(const Plan& plan, Books& books) {
  const auto params = CodedParams();
  return RunThreadRanks(plan.ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(1 << 22, DeviceKind::kCpu));
    SHOAL_ASSIGN_OR_RETURN(auto dp,
                           DataParallel::Create(Pointers(params), *mesh,
                                                {.zero_stage = plan.zero,
                                                 .bucket_bytes = 8192,
                                                 .arena = arena.get(),
                                                 .codecs = MakeGradientCodecs(plan.config, Pointers(params), 9)}));
    ThreadPool pool(1);
    dp->InitializeWeights(pool, 5);
    Stateful* all[] = {dp.get()};
    if (!plan.load.empty()) {
      CheckpointStore store({.dir = plan.load}, world);
      SHOAL_RETURN_IF_ERROR(store.LoadNewest(all).status());
      SHOAL_RETURN_IF_ERROR(dp->FinishLoad());
    }
    for (int64_t step = plan.from_step; step < plan.from_step + plan.steps; ++step) {
      dp->BeginStep();
      const double rate = plan.rates.empty() ? 0 : plan.rates[static_cast<size_t>(step)];
      dp->set_rate(rate);
      for (int micro = 0; micro < plan.micros; ++micro) {
        SHOAL_RETURN_IF_ERROR(dp->BeginMicroBatch(micro + 1 < plan.micros ? DataParallel::MicroBatch::kMore
                                                                          : DataParallel::MicroBatch::kLast));
        for (size_t i = params.size(); i-- > 0;) {
          const GradSink sink = dp->Grad(params[i]);
          const Tensor own = Tensor::Zeros(params[i].shape, DType::kF32);
          for (int64_t e = 0; e < params[i].size(); ++e) {
            own.data<float>()[e] = CodedGrad(rank, step * plan.micros + micro, static_cast<int>(i), e);
            float& to = sink.grad.data<float>()[e];
            to = own.data<float>()[e] + (sink.accumulate == ops::Accumulate::kAdd ? to : 0);
          }
          if (step != plan.skipped) {
            const std::lock_guard lock(books.mutex);
            AddTo(books.in, params[i], 0, own);
          }
          dp->Ready(params[i]);
        }
      }
      SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
      if (step == plan.skipped) continue;
      dp->CommitResiduals(rate);
      const std::lock_guard lock(books.mutex);
      if (plan.last != nullptr && rank == 0) plan.last->clear();
      for (const OwnedPiece& piece : dp->pieces()) {
        if (plan.zero > 0 || rank == 0) AddTo(books.out, *piece.param, piece.begin, piece.grad);
        if (plan.last == nullptr || rank != 0) continue;
        plan.last->insert(plan.last->end(), piece.grad.data<float>(), piece.grad.data<float>() + piece.grad.size());
      }
    }
    if (!plan.save.empty()) {
      std::filesystem::create_directories(plan.save);
      CheckpointStore store({.dir = plan.save}, world);
      SHOAL_RETURN_IF_ERROR(store.Save(plan.from_step + plan.steps, all, CheckpointStore::Best::kNo));
      SHOAL_RETURN_IF_ERROR(store.Wait());
    }
    const std::lock_guard lock(books.mutex);
    ResidualReader reader(books, params);
    dp->VisitState(reader);
    return absl::OkStatus();
  });
}

// |in - out - left| against |in|.
double Lost(Books& books) {
  double lost = 0, whole = 0;
  for (const auto& [name, in] : books.in) {
    const auto& left = books.left[name];
    for (size_t i = 0; i < in.size(); ++i) {
      const double rest = in[i] - books.out[name][i] - (left.empty() ? 0 : left[i]);
      lost += rest * rest;
      whole += in[i] * in[i];
    }
  }
  return std::sqrt(lost / whole);
}

TEST(GradientCodecs, NothingIsLostOverSteps) {
  for (const char* codec : {"q2", "q4", "q4_stochastic", "topk_0.05", "bf16", "powersgd_2"}) {
    const bool whole = codec[0] == 't' || codec[0] == 'p';
    for (const int zero : whole ? std::vector<int>{0, 1} : std::vector<int>{0, 1, 2, 3}) {
      for (const int ranks : {1, 2, 4}) {
        for (const int micros : {1, 3}) {
          Books books;
          const absl::Status status =
              RunSteps({.ranks = ranks, .zero = zero, .config = Uniform(codec), .micros = micros, .skipped = 2}, books);
          ASSERT_TRUE(status.ok()) << status;
          EXPECT_LT(Lost(books), 1e-5) << codec << ", ZeRO " << zero << ", " << ranks << " ranks, " << micros
                                       << " micro-batches";
        }
      }
    }
  }
}

// 1000 steps on two ranks, each tensor through a codec of its own: what was put in is what was applied and what is
// left. Left: the rounding of x = gradient + residual, of sums over ranks and of factors' products, each at most some
// 2^-24 of what is there, in 1000 steps that round independently; what topk keeps waiting is larger than gradients are.
TEST(GradientCodecs, NothingIsLostOverAThousandSteps) {
  constexpr int kRanks = 2, kSteps = 1000;
  const std::vector<std::string> names = {"q4", "topk_0.05", "ecsq_3", "powersgd_2"};
  std::vector<Param> params;
  for (const std::string& name : names)
    params.push_back({.name = name, .shape = {16, 12}, .id = static_cast<int>(params.size())});
  CompressionConfig config = Uniform("q4");
  std::vector<std::unique_ptr<Codec>> codecs;
  std::vector<const Codec*> of;
  for (const std::string& name : names) of.push_back(codecs.emplace_back(MakeCodec(name, 64).value()).get());
  Books books;
  const absl::Status status = RunThreadRanks(kRanks, {}, [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    SHOAL_ASSIGN_OR_RETURN(auto dp, DataParallel::Create(Pointers(params), *mesh,
                                                         {.zero_stage = 0,
                                                          .bucket_bytes = 1024,
                                                          .codecs = MakeGradientCodecs(config, Pointers(params), 9)}));
    dp->SetCodecs(of);
    std::map<std::string, std::vector<double>> in, out;
    for (int64_t step = 0; step < kSteps; ++step) {
      dp->BeginStep();
      SHOAL_RETURN_IF_ERROR(dp->BeginMicroBatch(DataParallel::MicroBatch::kLast));
      for (const Param& param : params) {
        const Tensor grad = dp->Grad(param).grad;
        for (int64_t e = 0; e < param.size(); ++e) grad.data<float>()[e] = CodedGrad(rank, kSteps + step, param.id, e);
        AddTo(in, param, 0, grad);
        dp->Ready(param);
      }
      SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
      dp->CommitResiduals(0);
      for (const OwnedPiece& piece : dp->pieces()) {
        if (rank == 0) AddTo(out, *piece.param, piece.begin, piece.grad);
      }
    }
    const std::lock_guard lock(books.mutex);
    for (const auto& [book, mine] : {std::pair{&books.in, &in}, {&books.out, &out}}) {
      for (const auto& [name, values] : *mine) {
        auto& sums = (*book)[name];
        sums.resize(values.size());
        for (size_t i = 0; i < values.size(); ++i) sums[i] += values[i];
      }
    }
    ResidualReader reader(books, params);
    dp->VisitState(reader);
    return absl::OkStatus();
  });
  ASSERT_TRUE(status.ok()) << status;
  for (const std::string& name : names) {
    Books one;
    one.in[name] = books.in[name], one.out[name] = books.out[name], one.left[name] = books.left[name];
    EXPECT_LT(Lost(one), 1e-6) << name;
    EXPECT_TRUE(std::any_of(one.left[name].begin(), one.left[name].end(), [](double e) { return e != 0; })) << name;
  }
}

// Residuals are of gradients at the rate of their step: at another they count old rate / new rate times, within 0.1 to
// 10, and after a restart likewise.
TEST(GradientCodecs, ResidualsFollowTheLearningRate) {
  for (const auto& [next, ratio] :
       {std::pair{0.02, 1.0}, {0.005, 4.0}, {0.05, 0.4}, {0.0001, 10.0}, {5.0, 0.1}, {0.0, 1.0}}) {
    for (const int zero : {0, 1, 2}) {
      SCOPED_TRACE(absl::StrCat("rate ", next, " after 0.02, ZeRO ", zero));
      const std::string folder = absl::StrCat(testing::TempDir(), "/codecs_rate_", zero);
      std::filesystem::remove_all(folder);
      Books whole, before, after;
      std::vector<float> last, resumed;
      Plan plan{.zero = zero, .config = Uniform("q3"), .steps = 2, .micros = 2, .rates = {0.02, next}, .last = &last};
      ASSERT_TRUE(RunSteps(plan, whole).ok());
      plan.last = nullptr, plan.steps = 1, plan.save = folder;
      ASSERT_TRUE(RunSteps(plan, before).ok());
      plan.last = &resumed, plan.from_step = 1, plan.load = folder, plan.save = "";
      ASSERT_TRUE(RunSteps(plan, after).ok());
      EXPECT_EQ(resumed, last);
      // The second step was given its gradients and `ratio` of what the first left.
      for (auto& [name, in] : after.in) {
        const auto& left = before.left[name];
        for (size_t i = 0; i < in.size(); ++i) in[i] += ratio * left[i];
      }
      EXPECT_LT(Lost(after), 1e-6);
    }
  }
}

TEST(GradientCodecs, ResumedEqualsUninterrupted) {
  for (const char* codec : {"q4", "q4_stochastic", "powersgd_3"}) {
    for (const int zero : codec[0] == 'p' ? std::vector<int>{0, 1} : std::vector<int>{0, 1, 2, 3}) {
      const std::string folder = absl::StrCat(testing::TempDir(), "/codecs_resumed_", codec, "_", zero);
      std::filesystem::remove_all(folder);
      Books books;
      std::vector<float> whole, rest;
      Plan plan{.zero = zero, .config = Uniform(codec), .micros = 2, .last = &whole};
      ASSERT_TRUE(RunSteps(plan, books).ok());
      plan.last = nullptr, plan.steps = 3, plan.save = folder;
      ASSERT_TRUE(RunSteps(plan, books).ok());
      plan.last = &rest, plan.from_step = 3, plan.steps = 2, plan.load = folder, plan.save = "";
      ASSERT_TRUE(RunSteps(plan, books).ok());
      EXPECT_EQ(whole, rest) << codec << ", ZeRO " << zero;
    }
  }
}

TEST(GradientCodecs, ResidualsFoldOntoAnotherNumberOfRanks) {
  for (const auto& [from, to] : {std::pair{8, 4}, std::pair{4, 8}, std::pair{3, 1}}) {
    const std::string folder = absl::StrCat(testing::TempDir(), "/codecs_folded_", from, "_", to);
    std::filesystem::remove_all(folder);
    Books before, after;
    ASSERT_TRUE(RunSteps({.ranks = from, .config = Uniform("q3"), .save = folder}, before).ok());
    ASSERT_TRUE(RunSteps({.ranks = to, .config = Uniform("q3"), .steps = 0, .load = folder}, after).ok());
    for (const auto& [name, want] : before.left) {
      const auto& got = after.left[name];
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-6) << name << " " << i;
    }
    CompressionConfig exact = Uniform("q3");
    exact.set_resume(CompressionConfig::EXACT);
    const absl::Status status = RunSteps({.ranks = to, .config = exact, .steps = 0, .load = folder}, after);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("start it on ", from, " ranks")));
    CompressionConfig reset = Uniform("q3");
    reset.set_resume(CompressionConfig::RESET);
    Books none;
    ASSERT_TRUE(RunSteps({.ranks = to, .config = reset, .steps = 0, .load = folder}, none).ok());
    for (const auto& [name, left] : none.left) EXPECT_EQ(left, std::vector<double>(left.size())) << name;
  }
}

TEST(GradientCodecs, OneRankTakesWhatCodesOfMoreLeftBehindOnce) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/codecs_inherited");
  std::filesystem::remove_all(folder);
  Books books;
  ASSERT_TRUE(RunSteps({.config = Uniform("q2"), .save = folder}, books).ok());
  EXPECT_LT(Lost(books), 1e-5);
  // A step that is not taken does not use it up, and nor does a checkpoint that is made before.
  books.left.clear();
  ASSERT_TRUE(
      RunSteps({.ranks = 1, .config = Uniform("q2"), .from_step = 5, .steps = 0, .load = folder, .save = folder}, books)
          .ok());
  EXPECT_LT(Lost(books), 1e-5);
  books.left.clear();
  ASSERT_TRUE(
      RunSteps({.ranks = 1, .config = Uniform("q2"), .from_step = 5, .steps = 4, .skipped = 5, .load = folder}, books)
          .ok());
  EXPECT_TRUE(books.left.empty());
  EXPECT_LT(Lost(books), 1e-5);
}

TEST(GradientCodecs, EmbeddingsVectorsSmallAndExemptTensorsTravelAsTheyAre) {
  const auto params = CodedParams();
  const auto names = [&](const CompressionConfig& config) {
    std::string text;
    const auto codecs = MakeGradientCodecs(config, Pointers(params), 1);
    for (const Codec* codec : codecs->of) absl::StrAppend(&text, codec->name(), " ");
    return text;
  };
  CompressionConfig config = Uniform("q4");
  EXPECT_EQ(names(config), "fp32 fp32 q4 q4 ");
  config.set_embeddings(true);
  EXPECT_EQ(names(config), "q4 fp32 q4 q4 ");
  config.add_exempt("^last");
  EXPECT_EQ(names(config), "q4 fp32 q4 fp32 ");
  config.set_min_elements(1000);
  EXPECT_EQ(names(config), "fp32 fp32 q4 fp32 ");
  EXPECT_EQ(MakeGradientCodecs(CompressionConfig(), Pointers(params), 1), nullptr);
}

// Of the codec that a job names plans may leave as much, of the default half.
TEST(GradientCodecs, BudgetsOfPlans) {
  struct Row {
    const char *codec, *text;
    double budget, want;
  };
  for (const Row& row :
       {Row{"", "0.5 of the squared error of q5", 0, 0.5}, Row{"q4", "the error of q4", 0, 1},
        Row{"", "2 of the squared error of q5", 2, 2}, Row{"q6", "0.25 of the squared error of q6", 0.25, 0.25}}) {
    CompressionConfig config;
    config.set_mode(CompressionConfig::LGRECO_BYTES);
    if (*row.codec != 0) config.set_codec(row.codec);
    if (row.budget > 0) config.set_error_budget(row.budget);
    const std::vector<Param> params = CodedParams();
    const auto codecs = MakeGradientCodecs(config, Pointers(params), 1);
    EXPECT_EQ(codecs->error_budget, row.want);
    EXPECT_EQ(codecs->BudgetText(), row.text);
    EXPECT_THAT(codecs->Text(), HasSubstr(row.text));
  }
}

TEST(GradientCodecs, WrongConfigurationsAreToldWithTheirField) {
  const auto params = CodedParams();
  const auto message = [&](const CompressionConfig& config) {
    return std::string(CheckCompression(config, Pointers(params), 0).message());
  };
  EXPECT_EQ(message(Uniform("q4")), "");
  EXPECT_THAT(message(Uniform("q9")), HasSubstr("comm.compression.codec"));
  EXPECT_THAT(message(Uniform("topk_0")), HasSubstr("comm.compression.codec"));
  EXPECT_EQ(message(Uniform("powersgd_9")), "");
  EXPECT_THAT(message(Uniform("powersgd_10")), HasSubstr("but last.weight [129, 9] has rank 9 at most"));
  CompressionConfig config = Uniform("q4");
  config.set_error_feedback(false);
  EXPECT_THAT(message(config), HasSubstr("q4_stochastic"));
  config.set_force_biased(true);
  EXPECT_EQ(message(config), "");
  config.set_block(63);
  EXPECT_THAT(message(config), HasSubstr("comm.compression.block is 63; it is a multiple of 8: 64"));
  config = Uniform("q4");
  config.add_exempt("norm");
  EXPECT_THAT(message(config), HasSubstr("'norm' matches no parameter"));
  config.set_mode(CompressionConfig::OFF);
  EXPECT_THAT(message(config), HasSubstr("mode is OFF"));
}

}  // namespace
}  // namespace shoal
