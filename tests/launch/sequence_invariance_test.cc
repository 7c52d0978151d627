// Loss and every gradient are the same for any plan of sequences: those of one rank that has them all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/world.h"
#include "launch/workload.h"
#include "models/model.h"
#include "models/transformer_spec.h"
#include "parallel/data_parallel.h"
#include "parallel/sequence_plan.h"
#include "parallel/sequence_planner.h"
#include "parallel/sequence_shard.h"
#include "runtime/base/status.h"
#include "runtime/module/step_context.h"
#include "tests/rows_to_try.h"

namespace shoal {
namespace {

constexpr int kVocabulary = 40;

struct Case {
  int heads = 4, key_heads = 4, head_size = 4;
  SequenceMode mode = SequenceMode::kAuto;
  DType compute = DType::kF64;
  int ranks = 4, zero = 0;
  bool llama = true, qk_norm = false, recompute = false;
  float dropout = 0;
  SequenceShard::RingChunks chunks = {};
  std::vector<int32_t> lengths = {};
  StepPlan plan = {};

  std::string Text() const {
    return absl::StrCat(heads, "/", key_heads, " heads, mode ", static_cast<int>(mode), ", ", DTypeName(compute), ", ",
                        ranks, " ranks, ZeRO ", zero, llama ? ", llama" : ", gpt2", qk_norm ? ", qk_norm" : "",
                        recompute ? ", recompute" : "", dropout > 0 ? ", dropout" : "", ", chunks of ", chunks.bytes,
                        " bytes, ", chunks.rows, " rows, lengths ", absl::StrJoin(lengths, ","), ", plan ",
                        plan.Text());
  }
};

std::unique_ptr<Model> MakeModel(const Case& c) {
  config::ModelConfig config;
  auto& t = *config.mutable_transformer();
  t.set_preset(c.llama ? config::TransformerConfig::LLAMA : config::TransformerConfig::GPT2);
  t.set_layers(2);
  t.set_width(c.heads * c.head_size);
  t.set_heads(c.heads);
  t.set_kv_heads(c.key_heads);
  t.set_ffn(24);
  t.set_vocabulary(kVocabulary);
  t.set_qk_norm(c.qk_norm);
  t.set_dropout(c.dropout);
  t.set_init_std(0.2);
  t = *ResolveTransformer(t, 256);
  return MakeModel(config, Recomputation(c.recompute ? Recomputed::kBlocks : Recomputed::kNothing));
}

int32_t TokenAt(int sequence, int at) { return (sequence * 7 + at * 13 + at * at % 11) % kVocabulary; }

MicroBatch Read(const std::vector<int32_t>& sequences, const std::vector<SequenceShard::Run>& runs) {
  MicroBatch micro;
  micro.cu_seqlens = {0};
  for (const auto& run : runs) {
    const int s = sequences[static_cast<size_t>(run.sequence)];
    for (int t = run.begin; t < run.end; ++t) {
      micro.tokens.push_back(TokenAt(s, t));
      micro.labels.push_back(t % 9 == 4 ? -1 : TokenAt(s, t + 1));
      micro.positions.push_back(t);
    }
    micro.cu_seqlens.push_back(static_cast<int32_t>(micro.tokens.size()));
    micro.sample_ids.push_back(100 + s);
    micro.max_len = std::max(micro.max_len, run.end - run.begin);
  }
  return micro;
}

// This rank's micro-batches; x undefined where it has no work.
std::vector<Batch> BatchesOf(const Case& c, const StepPlan& plan, const Mesh& mesh) {
  std::vector<Batch> batches;
  for (const auto& micro : plan.micro_batches) {
    Batch mine = c.zero < 2 ? Batch() : ToBatch(Read({}, {}));
    for (const auto& group : micro.groups) {
      if (mesh.rank() < group.first_rank || mesh.rank() >= group.first_rank + group.degree) continue;
      std::vector<int32_t> lengths;
      for (const int32_t s : group.sequences) lengths.push_back(c.lengths[static_cast<size_t>(s)]);
      const auto spread = SpreadOf(group.degree, c.heads, c.mode);
      EXPECT_TRUE(spread.ok()) << spread.status();
      auto shard = std::make_shared<SequenceShard>(ShardSequences(lengths, *spread, mesh));
      shard->chunks = c.chunks;
      const MicroBatch read = Read(group.sequences, shard->own_runs());
      mine = ToBatch(read, group.degree == 1 ? nullptr : shard);
    }
    batches.push_back(std::move(mine));
  }
  return batches;
}

struct Result {
  double loss = 0, grad_norm = 0;
  std::vector<std::vector<double>> grads, weights;  // by Param::id; in f64 weights are updated
};

constexpr double kRate = 0.01;  // of updates

double At(const Tensor& x, int64_t i) {
  return x.dtype() == DType::kF64 ? x.data<double>()[i] : static_cast<double>(x.data<float>()[i]);
}

// The first step of AdamW, clipped, of the pieces that this rank owns. In f64, which optimizers do not have.
void Update(absl::Span<const OwnedPiece> pieces, double grad_norm) {
  constexpr double kDecay = 0.1, kEpsilon = 1e-8, kClip = 0.1;
  for (const OwnedPiece& piece : pieces) {
    for (int64_t i = 0; i < piece.end - piece.begin; ++i) {
      const double g = piece.grad.data<double>()[i] * std::min(1.0, kClip / grad_norm);
      double& w = piece.master.data<double>()[i];
      w -= kRate * (kDecay * w + g / (std::abs(g) + kEpsilon));
    }
  }
}

absl::StatusOr<Result> Train(const Case& c, int ranks, const StepPlan& plan) {
  Result result;
  std::mutex mutex;
  const absl::Status status = RunThreadRanks(ranks, {}, [&](int, Communicator& world) -> absl::Status {
    const auto model = MakeModel(c);
    SHOAL_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(world, {}));
    const int zero = ranks == 1 ? 0 : c.zero;
    SHOAL_ASSIGN_OR_RETURN(
        const auto dp,
        DataParallel::Create(model->params(), *mesh, {.zero_stage = zero, .compute = c.compute, .bucket_bytes = 4096}));
    ThreadPool pool(1);
    dp->InitializeWeights(pool, 3);
    if (c.compute == DType::kBF16) SHOAL_RETURN_IF_ERROR(dp->PublishWeights(pool));
    SHOAL_ASSIGN_OR_RETURN(const auto arena, Arena::Create(int64_t{1} << 30, DeviceKind::kCpu));
    double labels = 0, loss = 0;
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      for (int t = 0; t < c.lengths[s]; ++t) labels += t % 9 == 4 ? 0 : 1;
    }
    dp->BeginStep();
    const std::vector<Batch> batches = BatchesOf(c, plan, *mesh);
    for (size_t m = 0; m < batches.size(); ++m) {
      SHOAL_RETURN_IF_ERROR(dp->BeginMicroBatch(m + 1 == batches.size() ? DataParallel::MicroBatch::kLast
                                                                        : DataParallel::MicroBatch::kMore));
      if (!batches[m].x.defined()) continue;
      try {
        StepContext ctx({.ops = {.pool = &pool},
                         .arena = arena.get(),
                         .params = dp.get(),
                         .compute = c.compute,
                         .seed = 11,
                         .grad_scale = 1 / labels});
        const Batch y = model->Forward(ctx, batches[m]);
        model->Backward(ctx, y);
        loss += ctx.losses().at("loss").first;
      } catch (const StepAborted& aborted) {
        return aborted.status();
      }
    }
    SHOAL_RETURN_IF_ERROR(dp->FinishReductions());
    double squares = 0;
    for (const OwnedPiece& piece : dp->pieces()) {
      for (int64_t i = 0; i < piece.grad.size(); ++i) squares += At(piece.grad, i) * At(piece.grad, i);
    }
    if (zero == 0) squares /= ranks;  // each has all of it
    SHOAL_ASSIGN_OR_RETURN(const auto sum, AllReduceValues(world, {loss, squares}, ReduceOp::kSum, {.tag = "loss"}));
    if (c.compute == DType::kF64) Update(dp->pieces(), std::sqrt(sum[1]));
    const std::lock_guard lock(mutex);
    result.loss = sum[0] / labels;
    result.grad_norm = std::sqrt(sum[1]);
    result.weights.resize(model->params().size());
    result.grads.resize(model->params().size());
    for (const OwnedPiece& piece : dp->pieces()) {
      auto& grad = result.grads[static_cast<size_t>(piece.param->id)];
      grad.resize(static_cast<size_t>(piece.param->size()));
      auto& weight = result.weights[static_cast<size_t>(piece.param->id)];
      weight.resize(grad.size());
      for (int64_t i = piece.begin; i < piece.end; ++i) {
        grad[static_cast<size_t>(i)] = At(piece.grad, i - piece.begin);
        weight[static_cast<size_t>(i)] = At(piece.master, i - piece.begin);
      }
    }
    return absl::OkStatus();
  });
  SHOAL_RETURN_IF_ERROR(status);
  return result;
}

// Largest difference of a gradient's elements, by its largest; of small ones by a tenth of the largest of all, since
// those of keys' biases are nothing but rounding.
double Difference(const Result& a, const Result& b) {
  double worst = 0, largest = 0;
  for (const auto& grad : a.grads) {
    for (const double g : grad) largest = std::max(largest, std::abs(g));
  }
  for (size_t p = 0; p < a.grads.size(); ++p) {
    double most = 0.1 * largest, difference = 0;
    EXPECT_EQ(a.grads[p].size(), b.grads[p].size());
    for (size_t i = 0; i < a.grads[p].size(); ++i) {
      most = std::max(most, std::abs(a.grads[p][i]));
      difference = std::max(difference, std::abs(a.grads[p][i] - b.grads[p][i]));
    }
    worst = std::max(worst, difference / most);
  }
  return worst;
}

double WeightDifference(const Result& a, const Result& b) {
  double most = 0;
  for (size_t p = 0; p < a.weights.size(); ++p) {
    EXPECT_EQ(a.weights[p].size(), b.weights[p].size());
    for (size_t i = 0; i < a.weights[p].size(); ++i) most = std::max(most, std::abs(a.weights[p][i] - b.weights[p][i]));
  }
  return most;
}

// Any plan whatever: sequences into micro-batches, these into groups of any degrees that fit side by side, in any
// order.
StepPlan RandomPlan(size_t sequences, int ranks, std::mt19937& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  std::vector<std::vector<int32_t>> chunks(1 + below(std::min<size_t>(3, sequences)));
  for (size_t s = 0; s < sequences; ++s)
    chunks[s < chunks.size() ? s : below(chunks.size())].push_back(static_cast<int32_t>(s));
  StepPlan plan = {};
  for (const auto& chunk : chunks) {
    std::vector<int> degrees;
    for (int free = ranks; free > 0 && degrees.size() < chunk.size() && (degrees.empty() || below(4) > 0);) {
      int degree = 1 << below(4);
      while (degree > free) degree /= 2;
      degrees.push_back(degree);
      free -= degree;
    }
    std::sort(degrees.rbegin(), degrees.rend());
    StepPlan::MicroBatch micro;
    int first = 0;
    for (const int degree : degrees) {
      micro.groups.push_back({degree, first, {}});
      first += degree;
    }
    for (size_t i = 0; i < chunk.size(); ++i) {
      const size_t to = i < micro.groups.size() ? i : below(micro.groups.size());
      micro.groups[to].sequences.push_back(chunk[i]);
    }
    for (auto& group : micro.groups) {
      for (size_t i = group.sequences.size(); i > 1; --i) std::swap(group.sequences[i - 1], group.sequences[below(i)]);
    }
    plan.micro_batches.push_back(std::move(micro));
  }
  return plan;
}

StepPlan OneRank(size_t sequences) {
  StepPlan plan = {};
  plan.micro_batches.resize(1);
  plan.micro_batches[0].groups = {{1, 0, {}}};
  for (size_t s = 0; s < sequences; ++s) plan.micro_batches[0].groups[0].sequences.push_back(static_cast<int32_t>(s));
  return plan;
}

void ExpectEqualsOneRank(const Case& c) {
  SCOPED_TRACE(c.Text());
  const double most = c.compute == DType::kF64 ? 1e-12 : c.compute == DType::kF32 ? 1e-5 : 0.03;
  SequenceCostModel anything{.linear = 1, .tokens_per_rank = 1 << 20};
  const absl::Status valid = ValidatePlan(c.plan, c.lengths, c.ranks, anything);
  ASSERT_TRUE(valid.ok()) << valid;
  const auto one = Train(c, 1, OneRank(c.lengths.size()));
  const auto many = Train(c, c.ranks, c.plan);
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(many.ok()) << many.status();
  EXPECT_NEAR(many->loss / one->loss, 1, most);
  EXPECT_NEAR(many->grad_norm / one->grad_norm, 1, most);
  EXPECT_LE(Difference(*one, *many), most);
  // Adam divides by gradients, of which small ones are more rounding than others.
  if (c.compute == DType::kF64) {
    EXPECT_LE(WeightDifference(*one, *many), 1e-8 * kRate);
  }
}

TEST(SequencePlans, AnyOneGivesTheGradientsOfOneRank) {
  std::mt19937 random(5);
  const std::vector<std::pair<int, int>> heads = {{4, 4}, {8, 2}, {6, 3}, {6, 1}, {3, 3}, {8, 8}, {12, 4}};
  const std::vector<int> sizes = RowsToTry<int>({1, 2, 3, 4, 5, 6, 7, 8});
  size_t cases = 0;
  // Modes, types and stages meet, each with each, in plans that spread sequences; the rest is drawn.
  std::map<SequenceMode, size_t> spread;
  std::set<std::tuple<SequenceMode, DType, int>> met;
  for (const int ranks : sizes) {
    for (const auto& both : heads) {
      const int h = both.first, k = both.second;
      for (const SequenceMode mode : {SequenceMode::kAuto, SequenceMode::kUlysses, SequenceMode::kRing}) {
        Case c{.heads = h, .key_heads = k, .mode = mode, .ranks = ranks};
        c.llama = random() % 2 == 0;
        c.qk_norm = random() % 3 == 0;
        c.recompute = random() % 3 == 0;
        c.dropout = random() % 3 == 0 ? 0.25F : 0;
        const SequenceShard::RingChunks chunks[] = {{}, {1, 100}, {1, 1}, {400, 2}};
        c.chunks = chunks[random() % 4];
        const size_t n = 1 + random() % 6;
        for (size_t s = 0; s < n; ++s) {
          const int longest = random() % 4 == 0 ? 150 : 20;
          c.lengths.push_back(1 + static_cast<int32_t>(random() % static_cast<unsigned>(longest)));
        }
        c.plan = RandomPlan(n, ranks, random);
        // Heads alone go no further than there are heads.
        int degree = 1;
        for (const auto& micro : c.plan.micro_batches) degree = std::max(degree, micro.groups[0].degree);
        if (degree > h && mode == SequenceMode::kUlysses) c.mode = SequenceMode::kAuto;
        size_t& turn = spread[c.mode];
        const DType types[] = {DType::kF64, DType::kF64, DType::kF32, DType::kBF16};
        c.compute = types[turn % 4];
        c.zero = static_cast<int>(turn / 4 % 4);
        if (degree > 1) {
          met.emplace(c.mode, c.compute, c.zero);
          ++turn;
        }
        ExpectEqualsOneRank(c);
        ++cases;
      }
    }
  }
  EXPECT_EQ(cases, sizes.size() * 7 * 3);
  if (!kThreadSanitizer) {
    EXPECT_EQ(met.size(), 3u * 3 * 4);
  }
}

TEST(SequencePlans, EveryPlannersPlanGivesTheGradientsOfOneRank) {
  const SequenceCostModel model{.linear = 1e-3,
                                .fixed = 1e-2,
                                .exchange_bytes_per_token = 100,
                                .bandwidth = {1e6},
                                .tokens_per_rank = 32,
                                .longest = 200};
  int zero = 0;
  const std::vector<SequencePlanner> planners(SequencePlanners().begin(), SequencePlanners().end());
  for (const SequencePlanner& planner : RowsToTry(planners)) {
    Case c{.heads = 4, .key_heads = 2, .ranks = 8, .zero = zero++ % 4, .lengths = {9, 120, 3, 30, 64, 17, 1, 25}};
    const auto step = PlanSequences({.lengths = c.lengths, .ranks = c.ranks, .model = &model}, planner.name);
    ASSERT_TRUE(step.ok()) << step.status();
    c.plan = step->plan;
    SCOPED_TRACE(planner.name);
    ExpectEqualsOneRank(c);
  }
}

// One sequence on all eight ranks, in every way.
TEST(SequencePlans, OneSequenceOnAllRanksInEveryWay) {
  for (const SequenceMode mode : {SequenceMode::kAuto, SequenceMode::kUlysses, SequenceMode::kRing}) {
    for (const int32_t length : {1, 2, 5, 17, 300}) {
      Case c{.heads = 8, .key_heads = 2, .mode = mode, .ranks = 8, .lengths = {length}};
      c.plan.micro_batches = {{.groups = {{8, 0, {0}}}}};
      ExpectEqualsOneRank(c);
      c.chunks = {1, 1};
      ExpectEqualsOneRank(c);
    }
  }
}

TEST(SequenceShard, TeamsHaveEqualTokensAndEqualWork) {
  std::mt19937 random(2);
  for (const int ring : {1, 2, 4, 8}) {
    for (const int ulysses : {1, 2, 4}) {
      std::vector<int32_t> lengths;
      for (int s = 0; s < 40; ++s) lengths.push_back(1 + static_cast<int32_t>(random() % (s % 8 == 0 ? 4000 : 60)));
      int64_t tokens = 0, most = 0;
      double work = 0, most_work = 0;
      for (int rank = 0; rank < ring * ulysses; ++rank) {
        const SequenceShard shard = ShardSequences(lengths, {ulysses, ring}, rank);
        int64_t own = 0;
        for (const auto& run : shard.own_runs()) own += run.size();
        EXPECT_EQ(own, shard.own_rows());
        tokens += own;
        most = std::max(most, own);
        double pairs = 0;
        for (const auto& run : shard.team_runs[static_cast<size_t>(shard.team_index())])
          pairs += 0.5 * static_cast<double>(run.size()) * (run.begin + run.end + 1);
        work += pairs / ulysses;
        most_work = std::max(most_work, pairs);
      }
      const int64_t all = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
      EXPECT_EQ(tokens, all);
      EXPECT_LE(most, all / (ring * ulysses) + 2);
      EXPECT_LE(most_work, 1.02 * work / ring) << ulysses << " x " << ring;
    }
  }
}

TEST(SequenceShard, EveryTokenIsHeldOnce) {
  const std::vector<int32_t> lengths = {1, 2, 3, 7, 30, 101};
  for (const SequenceSpread spread : {SequenceSpread{1, 8}, SequenceSpread{8, 1}, SequenceSpread{2, 4}}) {
    std::vector<std::vector<int>> seen;
    for (const int32_t length : lengths) seen.emplace_back(static_cast<size_t>(length));
    for (int rank = 0; rank < 8; ++rank) {
      for (const auto& run : ShardSequences(lengths, spread, rank).own_runs()) {
        for (int t = run.begin; t < run.end; ++t) ++seen[static_cast<size_t>(run.sequence)][static_cast<size_t>(t)];
      }
    }
    for (const auto& of : seen) EXPECT_THAT(of, testing::Each(1));
  }
}

}  // namespace
}  // namespace shoal
