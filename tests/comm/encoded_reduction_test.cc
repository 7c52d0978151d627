// Sums over ranks through codecs: the same bits everywhere, the error that the codes have, nothing lost.
#include "comm/encoded_reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Half = EncodedReduction::Half;
constexpr int64_t kReduceBlock = 64;
const CommOptions kChecked = [] {
  CommOptions options;
  options.check = CommOptions::Check::kOn;
  return options;
}();

// Element i of a rank's gradient in a step: a part that all ranks share, and noise of its own.
float Gradient(int rank, int step, int64_t i) {
  const Rng shared({.seed = 1, .purpose = RngPurpose::kTest}), own({.seed = 2, .purpose = RngPurpose::kTest});
  return 0.3F * shared.Normal(0, static_cast<uint64_t>(i)) +
         own.Normal(static_cast<uint64_t>(rank) << 20 | static_cast<uint64_t>(step), static_cast<uint64_t>(i));
}

// Parts of uneven sizes, some of them empty.
std::vector<int64_t> PartsOf(int64_t elements, int ranks) {
  std::vector<int64_t> counts(static_cast<size_t>(ranks), 0);
  int64_t left = elements;
  for (int r = 0; r < ranks; ++r) {
    counts[r] = r + 1 == ranks ? left : r % 3 == 1 ? 0 : std::min(left, elements / ranks + r);
    left -= counts[r];
  }
  return counts;
}

struct Case {
  std::vector<std::string> codecs;  // of runs of equal size, in turn
  int64_t elements = 1000;
  Half half = Half::kAll;
  bool feedback = true;
};
struct Codecs {
  std::vector<std::unique_ptr<Codec>> owned;
  std::vector<EncodedRun> runs;
  explicit Codecs(const Case& c) {
    const auto parts = static_cast<int64_t>(c.codecs.size());
    for (int64_t i = 0; i < parts; ++i) {
      owned.push_back(MakeCodec(c.codecs[i], kReduceBlock).value());
      runs.push_back({.begin = c.elements * i / parts,
                      .end = c.elements * (i + 1) / parts,
                      .codec = owned.back().get(),
                      .tensor = NameHash(absl::StrCat("tensor ", i)),
                      .first = 0});
    }
  }
};

// One rank's state over steps.
struct Rank {
  Tensor in, residual, out;
  Rank(const Case& c, int64_t part)
      : in(Tensor::Zeros({c.elements}, DType::kF32)),
        residual(c.feedback ? Tensor::Zeros({c.elements}, DType::kF32) : Tensor()),
        out(Tensor::Zeros({c.half == Half::kAll ? c.elements : part}, DType::kF32)) {}
  absl::Status Reduce(Communicator& comm, const Case& c, const Codecs& codecs, int step,
                      std::shared_ptr<std::vector<RunErrors>> errors = nullptr) {
    for (int64_t i = 0; i < c.elements; ++i) in.data<float>()[i] = Gradient(comm.rank(), step, i);
    return ReduceIn(comm, c, codecs, step, std::move(errors));
  }
  absl::Status ReduceIn(Communicator& comm, const Case& c, const Codecs& codecs, int step,
                        std::shared_ptr<std::vector<RunErrors>> errors = nullptr) {
    return comm
        .ReduceEncoded({.in = in,
                        .residual = residual,
                        .counts = PartsOf(c.elements, comm.size()),
                        .runs = codecs.runs,
                        .half = c.half,
                        .out = out,
                        .seed = 5,
                        .step = static_cast<uint32_t>(step),
                        .errors = std::move(errors)},
                       {.tag = "test"})
        ->Wait();
  }
  void Skip() {
    if (in.size() > 0) std::memcpy(residual.raw(), in.raw(), static_cast<size_t>(in.bytes()));
  }
};

std::vector<float> Values(const Tensor& t) { return {t.data<float>(), t.data<float>() + t.size()}; }
double Squares(const std::vector<double>& x) { return std::inner_product(x.begin(), x.end(), x.begin(), 0.0); }

const std::vector<std::string> kMixed = {"fp32", "q4", "bf16", "topk_0.1", "q3_stochastic"};

TEST(EncodedReduction, AllRanksAndRunsHoldTheSameBits) {
  for (const int ranks : {1, 2, 3, 4, 7, 8}) {
    for (const int64_t elements : {int64_t{0}, int64_t{5}, int64_t{1000}, int64_t{5003}}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", elements, " elements"));
      const Case c{.codecs = kMixed, .elements = elements};
      const Codecs codecs(c);
      std::vector<std::vector<float>> sums(static_cast<size_t>(ranks)), first;
      for (int run = 0; run < 2; ++run) {
        ASSERT_TRUE(RunThreadRanks(ranks, kChecked, [&](int rank, Communicator& comm) {
                      Rank state(c, PartsOf(elements, ranks)[rank]);
                      for (int step = 0; step < 3; ++step) {
                        SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, step));
                      }
                      sums[rank] = Values(state.out);
                      return absl::OkStatus();
                    }).ok());
        for (int r = 1; r < ranks; ++r) EXPECT_EQ(sums[r], sums[0]) << "rank " << r;
        if (run == 0) first = sums;
        EXPECT_EQ(sums, first);
      }
    }
  }
}

TEST(EncodedReduction, ExactCodecsGiveTheBitsOfPlainReductions) {
  for (const Half half : {Half::kAll, Half::kScatter}) {
    const Case c{.codecs = {"fp32", "fp32"}, .elements = 777, .half = half};
    const Codecs codecs(c);
    ASSERT_TRUE(RunThreadRanks(3, {}, [&](int rank, Communicator& comm) {
                  const std::vector<int64_t> counts = PartsOf(c.elements, 3);
                  Rank state(c, counts[rank]);
                  SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, 0));
                  const std::vector<float> left = Values(state.residual);
                  EXPECT_EQ(left, std::vector<float>(left.size(), 0.0F));
                  for (int64_t i = 0; i < c.elements; ++i) state.in.data<float>()[i] = Gradient(rank, 0, i);
                  const std::vector<float> ours = Values(state.out);
                  SHOAL_RETURN_IF_ERROR(
                      half == Half::kAll
                          ? comm.AllReduce(state.in, ReduceOp::kSum, {.tag = "plain"})->Wait()
                          : comm.ReduceScatterV(state.in, counts, state.out, ReduceOp::kSum, {.tag = "plain"})->Wait());
                  EXPECT_EQ(ours, Values(half == Half::kAll ? state.in : state.out));
                  return absl::OkStatus();
                }).ok());
  }
}

// error^2 = sum over ranks but the owner of theirs, and that of the owner's code: of quantisers, whose errors are
// independent.
TEST(EncodedReduction, ErrorFollowsTheLaw) {
  for (const int ranks : {2, 4, 8}) {
    for (const char* codec : {"q4", "q6", "q4_stochastic"}) {
      for (const Half half : {Half::kAll, Half::kScatter}) {
        const Case c{.codecs = {codec}, .elements = 1 << 14, .half = half, .feedback = false};
        const Codecs codecs(c);
        std::mutex mutex;
        double measured = 0, expected = 0;
        ASSERT_TRUE(RunThreadRanks(ranks, {}, [&](int rank, Communicator& comm) {
                      const std::vector<int64_t> counts = PartsOf(c.elements, ranks);
                      Rank state(c, counts[rank]);
                      auto errors = std::make_shared<std::vector<RunErrors>>(1);
                      SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, 0, errors));
                      const int64_t at = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
                      std::vector<double> error;
                      for (int64_t i = 0; i < counts[rank]; ++i) {
                        double sum = 0;
                        for (int r = 0; r < ranks; ++r) sum += static_cast<double>(Gradient(r, 0, at + i));
                        error.push_back(state.out.data<float>()[half == Half::kAll ? at + i : i] - sum);
                      }
                      const std::lock_guard lock(mutex);
                      expected += (*errors)[0].error_squares;
                      measured += Squares(error);
                      return absl::OkStatus();
                    }).ok());
        EXPECT_NEAR(measured / expected, 1, 0.1) << codec << ", " << ranks << " ranks";
      }
    }
  }
}

// What was put in is what came out and what is left behind: nothing is lost, and what is left stays bounded.
TEST(EncodedReduction, ErrorFeedbackTelescopes) {
  constexpr int kRanks = 3, kSteps = 200;
  for (const Half half : {Half::kAll, Half::kScatter}) {
    const Case c{.codecs = kMixed, .elements = 600, .half = half};
    const Codecs codecs(c);
    std::mutex mutex;
    std::vector<double> balance(static_cast<size_t>(c.elements));
    ASSERT_TRUE(RunThreadRanks(kRanks, {}, [&](int rank, Communicator& comm) {
                  const std::vector<int64_t> counts = PartsOf(c.elements, kRanks);
                  const int64_t at = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
                  Rank state(c, counts[rank]);
                  std::vector<double> mine(balance.size());
                  for (int step = 0; step < kSteps; ++step) {
                    for (int64_t i = 0; i < c.elements; ++i) mine[i] += Gradient(rank, step, i);
                    const std::vector<float> before = Values(state.residual);
                    SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, step));
                    EXPECT_EQ(Values(state.in), before) << "what a skipped step goes back to";
                    for (int64_t i = 0; i < counts[rank]; ++i) {
                      mine[at + i] -= state.out.data<float>()[half == Half::kAll ? at + i : i];
                    }
                  }
                  const std::lock_guard lock(mutex);
                  for (size_t i = 0; i < balance.size(); ++i) {
                    balance[i] += mine[i] - state.residual.data<float>()[i];
                  }
                  return absl::OkStatus();
                }).ok());
    EXPECT_LT(std::sqrt(Squares(balance) / static_cast<double>(c.elements)), 1e-4);
  }
}

// Steps 0 and 2 with a bad step between them, which is skipped, and without it.
TEST(EncodedReduction, ANonFiniteGradientReachesAllRanksAndNoOtherStep) {
  for (const char* codec : {"fp32", "bf16", "q4", "q4_stochastic", "ecsq_3", "topk_0.1"}) {
    const Case c{.codecs = {codec}, .elements = 300};
    const Codecs codecs(c);
    ASSERT_TRUE(RunThreadRanks(3, {}, [&](int rank, Communicator& comm) {
                  std::vector<std::vector<float>> sums, left;
                  for (const bool bad : {false, true}) {
                    Rank state(c, PartsOf(c.elements, 3)[rank]);
                    SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, 0));
                    if (bad) {
                      for (int64_t i = 0; i < c.elements; ++i) state.in.data<float>()[i] = Gradient(rank, 1, i);
                      if (rank == 1) state.in.data<float>()[7] = std::nanf("");
                      if (rank == 1) state.in.data<float>()[299] = INFINITY;
                      SHOAL_RETURN_IF_ERROR(state.ReduceIn(comm, c, codecs, 1));
                      const std::vector<float> sum = Values(state.out);
                      EXPECT_TRUE(std::any_of(sum.begin(), sum.end(), [](float x) { return !std::isfinite(x); }))
                          << codec << " on rank " << rank;
                      state.Skip();
                    }
                    SHOAL_RETURN_IF_ERROR(state.Reduce(comm, c, codecs, 2));
                    sums.push_back(Values(state.out));
                    left.push_back(Values(state.residual));
                  }
                  for (const float x : sums[1]) EXPECT_TRUE(std::isfinite(x)) << codec;
                  EXPECT_EQ(sums[0], sums[1]) << codec << " on rank " << rank;
                  EXPECT_EQ(left[0], left[1]) << codec << " on rank " << rank;
                  return absl::OkStatus();
                }).ok());
  }
}

TEST(EncodedReduction, RanksThatDisagreeOnCodecsAreTold) {
  const Case c{.codecs = {"q4"}, .elements = 100}, other{.codecs = {"q5"}, .elements = 100};
  const Codecs codecs(c), others(other);
  const absl::Status status = RunThreadRanks(2, kChecked, [&](int rank, Communicator& comm) {
    Rank state(c, PartsOf(100, 2)[rank]);
    return state.Reduce(comm, c, rank == 0 ? codecs : others, 0);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

}  // namespace
}  // namespace shoal
