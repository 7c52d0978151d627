#include "parallel/data_parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/module/local_params.h"
#include "tests/parallel/pointers.h"

namespace shoal {
namespace {

std::vector<Param> SomeParams() {
  std::vector<Param> params;
  const std::vector<Shape> shapes = {{7, 5}, {3}, {64, 33}, {1}, {0, 4}, {129}, {50, 20}};
  for (size_t i = 0; i < shapes.size(); ++i)
    params.push_back({.name = "p" + std::to_string(i), .shape = shapes[i], .id = static_cast<int>(i)});
  return params;
}

TEST(Boxes, CopyOverlapEqualsElementByElement) {
  const Rng rng({2, RngPurpose::kTest, 1});
  uint64_t draw = 0;
  const auto pick = [&](int64_t below) {
    return static_cast<int64_t>(rng.Words(0, draw++)[0] % static_cast<uint64_t>(below));
  };
  for (int trial = 0; trial < 200; ++trial) {
    Shape global(1 + pick(3));
    for (auto& extent : global) extent = 1 + pick(5);
    const auto box = [&] {
      Box b = WholeBox(global);
      for (size_t d = 0; d < global.size(); ++d) {
        b.offset[d] = pick(global[d] + 1);
        b.extent[d] = pick(global[d] - b.offset[d] + 1);
      }
      return b;
    };
    const Box from = box(), to = box();
    const auto flat = [&](const Box& b, int64_t i) {  // global index of element i of a box
      Shape at(global.size());
      for (size_t d = global.size(); d-- > 0; i /= b.extent[d]) at[d] = b.offset[d] + i % b.extent[d];
      int64_t index = 0;
      for (size_t d = 0; d < global.size(); ++d) index = index * global[d] + at[d];
      return index;
    };
    const Tensor a = Tensor::Zeros({from.size()}, DType::kF32),
                 b = Tensor::Zeros({to.size()}, trial % 2 == 0 ? DType::kF32 : DType::kF64);
    std::map<int64_t, float> held;
    for (int64_t i = 0; i < from.size(); ++i) held[flat(from, i)] = a.data<float>()[i] = static_cast<float>(i + 1);
    CopyOverlap(a, from, b, to);
    for (int64_t i = 0; i < to.size(); ++i) {
      const auto at = held.find(flat(to, i));
      const double got = trial % 2 == 0 ? static_cast<double>(b.data<float>()[i]) : b.data<double>()[i];
      EXPECT_EQ(got, at == held.end() ? 0.0 : static_cast<double>(at->second))
          << BoxString(from) << " to " << BoxString(to);
    }
  }
}

TEST(Sharder, EveryElementHasOneOwnerAtItsGranularity) {
  const auto params = SomeParams();
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  for (const auto granularity : {ShardGranularity::kElement, ShardGranularity::kRow, ShardGranularity::kMatrix}) {
    for (const int ranks : {1, 2, 3, 8}) {
      const ShardPlan plan =
          PlanShards({.params = pointers, .ranks = ranks, .bucket_bytes = 4096, .granularity = granularity});
      std::vector<int64_t> covered(params.size());
      for (const Bucket& bucket : plan.buckets) {
        int64_t total = 0, at = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          total += bucket.counts[rank];
          int64_t mine = 0;
          for (const ShardPiece& piece : bucket.owned[rank]) {
            EXPECT_EQ(piece.bucket_offset, at + mine);
            mine += piece.end - piece.begin;
            covered[piece.param] += piece.end - piece.begin;
            const int64_t row = RowElements(params[piece.param].shape);
            if (granularity == ShardGranularity::kRow) {
              EXPECT_TRUE(piece.end % row == 0 || piece.end == params[piece.param].size());
            }
            if (granularity == ShardGranularity::kMatrix) {
              EXPECT_TRUE(piece.end - piece.begin == params[piece.param].size());
            }
          }
          EXPECT_EQ(mine, bucket.counts[rank]);
          at += mine;
        }
        EXPECT_EQ(total, bucket.size);
      }
      for (size_t i = 0; i < params.size(); ++i) EXPECT_EQ(covered[i], params[i].size());
    }
  }
}

TEST(Sharder, TiedTensorsHaveBucketsOfTheirOwnWhereThatIsAsked) {
  std::vector<Param> params;
  for (int i = 0; i < 6; ++i)
    params.push_back({.name = "p" + std::to_string(i), .shape = {10}, .id = i, .uses = i < 2 || i == 4 ? 2 : 1});
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  const auto buckets = [&](Tied tied) {
    std::vector<std::vector<int>> of;
    for (const Bucket& bucket : PlanShards({.params = pointers, .ranks = 2, .tied = tied}).buckets)
      of.push_back(bucket.params);
    return of;
  };
  EXPECT_EQ(buckets(Tied::kTogether), (std::vector<std::vector<int>>{{5, 4, 3, 2, 1, 0}}));
  EXPECT_EQ(buckets(Tied::kApart), (std::vector<std::vector<int>>{{5}, {4}, {3, 2}, {1, 0}}));
}

TEST(Sharder, WholeTensorsAreSharedOutByTheirCost) {
  // Ten layers of four tensors, of which one costs as much as the rest.
  std::vector<Param> params;
  std::vector<double> cost;
  for (int i = 0; i < 40; ++i) {
    params.push_back({.name = "p" + std::to_string(i), .shape = {16, 16}, .id = i});
    cost.push_back(i % 4 == 0 ? 3 : 1);
  }
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  for (const int ranks : {2, 3, 8}) {
    const ShardPlan plan = PlanShards({.params = pointers,
                                       .ranks = ranks,
                                       .bucket_bytes = 3 * 1024,  // three tensors: fewer than eight ranks
                                       .granularity = ShardGranularity::kMatrix,
                                       .cost = cost});
    std::vector<double> load(ranks);
    for (const Bucket& bucket : plan.buckets) {
      for (int rank = 0; rank < ranks; ++rank) {
        for (const ShardPiece& piece : bucket.owned[rank]) load[rank] += cost[piece.param];
      }
    }
    EXPECT_LE(*std::max_element(load.begin(), load.end()), 60.0 / ranks + 3) << ranks << " ranks";
  }
}

float FakeGrad(int rank, int micro, int param, int64_t i) {
  return Rng({3, RngPurpose::kTest, static_cast<uint64_t>(param)})
      .Normal(static_cast<uint64_t>(rank * 10 + micro), static_cast<uint64_t>(i));
}

// All micro-batches of a step.
void FakeBackward(const std::vector<Param>& params, int rank, int micros, DataParallel& dp) {
  for (int m = 0; m < micros; ++m) {
    ASSERT_EQ(dp.BeginMicroBatch(m + 1 == micros ? DataParallel::MicroBatch::kLast : DataParallel::MicroBatch::kMore),
              absl::OkStatus());
    for (size_t i = params.size(); i-- > 0;) {
      if (rank == 0 && i == 2) continue;  // this rank has nothing to give to it
      const GradSink sink = dp.Grad(params[i]);
      for (int64_t e = 0; e < params[i].size(); ++e) {
        float& to = sink.grad.data<float>()[e];
        to = FakeGrad(rank, m, static_cast<int>(i), e) + (sink.accumulate == ops::Accumulate::kAdd ? to : 0);
      }
      dp.Ready(params[i]);
    }
  }
}

enum class Gradients : uint8_t { kOwnMemory, kInArena };

// Two steps of w -= 0.1 g with made-up gradients; the weights of every rank afterwards.
std::vector<std::vector<float>> Train(int ranks, int zero, int micros, DType compute,
                                      Gradients gradients = Gradients::kOwnMemory) {
  const auto params = SomeParams();
  std::vector<std::vector<float>> weights(ranks);
  const absl::Status status = RunThreadRanks(ranks, {}, [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    std::vector<const Param*> pointers;
    for (const Param& p : params) pointers.push_back(&p);
    SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(1 << 22, DeviceKind::kCpu));
    DataParallelOptions options{.zero_stage = zero, .compute = compute, .bucket_bytes = 4096};
    if (gradients == Gradients::kInArena) options.arena = arena.get();
    SHOAL_ASSIGN_OR_RETURN(auto dp, DataParallel::Create(pointers, *mesh, options));
    ThreadPool pool(1);
    dp->InitializeWeights(pool, 5);
    for (int step = 0; step < 2; ++step) {
      dp->BeginStep();
      FakeBackward(params, rank, micros, *dp);
      SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
      for (OwnedPiece& piece : dp->pieces()) {
        for (int64_t e = 0; e < piece.master.size(); ++e)
          piece.master.data<float>()[e] -= 0.1f * piece.grad.data<float>()[e];
      }
      dp->ReleaseGradients();
      if (gradients == Gradients::kInArena) {
        EXPECT_GE(arena->peak(), dp->grad_bytes());
        // Sums of shares lie between whole buckets that come and go.
        int64_t between = 0;
        for (const Bucket& bucket : dp->plan().buckets) between = std::max(between, 4 * bucket.size);
        EXPECT_LE(arena->peak(), dp->grad_bytes() + 64 * 2 * static_cast<int64_t>(dp->plan().buckets.size()) +
                                     (dp->reduces_each_micro_batch() ? between : 0));
        arena->Fit(arena->peak());  // nothing is left in it
        const Tensor other = arena->Frame({arena->peak()}, DType::kU8);
        std::memset(other.raw(), 0xff, static_cast<size_t>(other.bytes()));
        arena->Rewind(0);
        arena->ResetPeak();
      }
      SHOAL_RETURN_IF_ERROR(dp->PublishWeights(pool));
    }
    for (const Param& p : params) {
      SHOAL_ASSIGN_OR_RETURN(const Tensor w, dp->WholeWeight(p));
      for (int64_t e = 0; e < p.size(); ++e)
        weights[rank].push_back(compute == DType::kF32 ? w.data<float>()[e]
                                                       : static_cast<float>(w.data<BFloat16>()[e]));
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return weights;
}

TEST(DataParallel, StagesAndRanksAgreeBitForBit) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int ranks : {1, 2, 3, 4}) {
      for (const int micros : {1, 3}) {
        const auto plain = Train(ranks, 0, micros, compute)[0];
        for (const int zero : {0, 1, 2, 3}) {
          const auto got = Train(ranks, zero, micros, compute);
          for (int rank = 0; rank < ranks; ++rank) {
            const std::string where = absl::StrCat("ZeRO ", zero, ", ", ranks, " ranks, ", micros, " micro-batches, ",
                                                   DTypeName(compute), ", rank ", rank);
            EXPECT_EQ(got[rank], got[0]) << where;
            // Stages 2 and 3 add up the ranks of each micro-batch first.
            if (zero < 2 || micros == 1) {
              EXPECT_EQ(got[rank], plain) << where;
            }
            const float tolerance = compute == DType::kF32 ? 1e-6f : 1e-2f;
            for (size_t i = 0; i < plain.size(); ++i)
              ASSERT_NEAR(got[rank][i], plain[i], tolerance * (1 + std::abs(plain[i]))) << where;
          }
        }
      }
    }
  }
}

TEST(DataParallel, MeasuresTheOwnGradientBeforeItIsReduced) {
  const auto params = SomeParams();
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  for (const int zero : {0, 1}) {
    const absl::Status status = RunThreadRanks(3, {}, [&](int rank, Communicator& world) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
      SHOAL_ASSIGN_OR_RETURN(auto dp,
                             DataParallel::Create(pointers, *mesh, {.zero_stage = zero, .bucket_bytes = 4096}));
      ThreadPool pool(2);
      double want = 0;
      for (size_t i = 0; i < params.size(); ++i) {
        for (int64_t e = 0; e < params[i].size() && !(rank == 0 && i == 2); ++e) {
          const int param = static_cast<int>(i);
          const auto g = static_cast<double>(FakeGrad(rank, 1, param, e) + FakeGrad(rank, 0, param, e));
          want += g * g;
        }
      }
      for (const bool measures : {true, false, true}) {
        dp->BeginStep();
        if (measures) dp->MeasureOwn(pool);
        FakeBackward(params, rank, 2, *dp);
        SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
        EXPECT_NEAR(dp->own_squares(), measures ? want : 0, 1e-6 * want) << "rank " << rank << ", ZeRO " << zero;
      }
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(DataParallel, GradientsMayBorrowTheArenasMemory) {
  for (const int zero : {0, 1, 2, 3}) {
    for (const int ranks : {1, 3}) {
      EXPECT_EQ(Train(ranks, zero, 2, DType::kF32, Gradients::kInArena), Train(ranks, zero, 2, DType::kF32))
          << ranks << " ranks, stage " << zero;
    }
  }
}

TEST(DataParallel, APeerThatStopsIsAnErrorInEveryPass) {
  const auto params = SomeParams();
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  for (const int zero : {2, 3}) {
    absl::Status seen;
    const absl::Status status = RunThreadRanks(2, {}, [&](int rank, Communicator& world) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
      SHOAL_ASSIGN_OR_RETURN(auto dp,
                             DataParallel::Create(pointers, *mesh, {.zero_stage = zero, .bucket_bytes = 4096}));
      for (int step = 0; step < 2; ++step) {
        if (rank == 1 && step == 1) return absl::AbortedError("this rank stops");
        dp->BeginStep();
        absl::Status passed;
        try {
          passed = dp->BeginMicroBatch(DataParallel::MicroBatch::kLast);
          for (const Param& param : params) dp->Weight(param);
          for (size_t i = params.size(); i-- > 0;) {
            dp->Grad(params[i]);
            dp->Ready(params[i]);
          }
        } catch (const StepAborted& aborted) {
          passed = aborted.status();
        }
        if (passed.ok()) passed = dp->FinishReductions();
        if (rank == 0 && !passed.ok()) seen = passed;  // the last pass, or the end of the one before
        SHOAL_RETURN_IF_ERROR(passed);
        dp->ReleaseGradients();
      }
      return absl::OkStatus();
    });
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(seen.ok()) << "stage " << zero;
  }
}

TEST(DataParallel, RanksThatDriftApartAreToldWithTheTensor) {
  const auto params = SomeParams();
  for (const int zero : {0, 1, 2}) {
    const absl::Status status = RunThreadRanks(3, {}, [&](int rank, Communicator& world) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
      SHOAL_ASSIGN_OR_RETURN(auto dp, DataParallel::Create(Pointers(params), *mesh, {.zero_stage = zero}));
      dp->InitializeWeights(5);
      SHOAL_RETURN_IF_ERROR(dp->CheckWeights());
      // The last bit of one element on one rank.
      SHOAL_ASSIGN_OR_RETURN(const Tensor weight, dp->WholeWeight(params[5]));
      if (rank == 1) weight.data<float>()[100] = std::nextafter(weight.data<float>()[100], INFINITY);
      const absl::Status drifted = dp->CheckWeights();
      const std::string text(drifted.message());
      EXPECT_TRUE(absl::StartsWith(text, "ranks have drifted apart: ranks differ in their bits of p5:")) << text;
      EXPECT_TRUE(absl::StrContains(text, "rank 1: ") && absl::StrContains(text, "ranks 0, 2: ")) << text;
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(DataParallel, SumsMicroBatchesThenRanksInOrder) {
  const auto params = SomeParams();
  const auto got = Train(3, 1, 2, DType::kF32)[1];
  ThreadPool pool(1);
  size_t at = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor start = Tensor::Zeros(params[i].shape, DType::kF32);
    InitialValues(pool, params[i], 5, 0, start);
    for (int64_t e = 0; e < params[i].size(); ++e, ++at) {
      float sum = 0;
      for (int rank = 0; rank < 3; ++rank) {
        if (rank == 0 && i == 2) continue;
        sum += FakeGrad(rank, 1, static_cast<int>(i), e) + FakeGrad(rank, 0, static_cast<int>(i), e);
      }
      float w = start.data<float>()[e];
      for (int step = 0; step < 2; ++step) w -= 0.1f * sum;
      ASSERT_EQ(got[at], w) << params[i].name << "[" << e << "]";
    }
  }
}

}  // namespace
}  // namespace shoal
