#include "launch/sequence_setup.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "comm/exchange_costs.h"
#include "launch/predict.h"
#include "models/transformer_spec.h"
#include "parallel/sequence_traffic.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

// A core and a link of 8 Gbit/s, where plans have to be the same on every run and nothing is calibrated.
constexpr double kNominalPeak = 1e11;
constexpr LinearTime kNominalExchange = {1e-4, 1e-9};

struct ComputeCosts {
  double quadratic = 0, linear = 0, fixed = 0;
};

// Of a sequence of n tokens: linear n + quadratic n^2, from three lengths; and what a micro-batch takes besides.
absl::StatusOr<ComputeCosts> CalibratedCosts(const config::Job& job, int ranks, const Calibration& calibration,
                                             double peak) {
  const auto n = static_cast<int32_t>(std::max<int64_t>(2, std::min<int64_t>(job.micro_batch().tokens(), 1 << 20) / 2));
  const auto seconds = [&](std::vector<int32_t> cu) {
    return calibration.StepSeconds(StepCost(job, ranks, {BatchShape{std::move(cu), {}, {}}}), peak);
  };
  SHOAL_ASSIGN_OR_RETURN(const double one, seconds({0, n}));
  SHOAL_ASSIGN_OR_RETURN(const double two, seconds({0, n, 2 * n}));
  SHOAL_ASSIGN_OR_RETURN(const double twice, seconds({0, 2 * n}));
  const BatchShape shape{{0, n}, {}, {}};
  SHOAL_ASSIGN_OR_RETURN(const double again, calibration.StepSeconds(StepCost(job, ranks, {shape, shape}), peak));
  // In one micro-batch a second sequence takes linear n + quadratic n^2, twice the length 2 quadratic n^2 more.
  const double length = n, quadratic = std::max(0.0, (twice - two) / (2 * length * length));
  const double linear = std::max(1e-12, (two - one) / length - quadratic * length);
  return ComputeCosts{quadratic, linear, std::max(0.0, again - two)};
}

// Operations at a share of the speed of products that the ops of small models reach.
ComputeCosts EstimatedCosts(const config::Job& job, double peak) {
  constexpr double kShare = 0.4, kFixed = 1e-3;
  const auto& model = job.model().transformer();
  const double at_zero = TrainFlopsPerToken(model, 0), at_one = TrainFlopsPerToken(model, 1);
  return {(at_one - at_zero) / peak / kShare, at_zero / peak / kShare, kFixed};
}

// Adds what degrees from 2 on exchange, by what an all-to-all of all ranks takes. The model has one number of
// bytes and one of seconds a micro-batch for all degrees: rates carry what differs.
absl::Status AddExchanges(const config::Job& job, int ranks, const LinearTime& all_to_all, SequenceCostModel& c) {
  const int largest = c.LargestDegree(ranks);
  if (largest == 1) return absl::OkStatus();
  const auto& model = job.model().transformer();
  const AttentionHeads heads{.heads = model.heads(), .key_heads = model.kv_heads(), .size = HeadSize(model)};
  const double element = job.runtime().compute() == config::RuntimeConfig::BF16 ? 2 : 4;
  const double per_byte = std::max(1e-15, all_to_all.per_byte) * ranks / (ranks - 1);  // of what leaves a rank
  std::vector<double> bytes, in_turn;
  for (int degree = 2; degree <= largest; degree *= 2) {
    SHOAL_ASSIGN_OR_RETURN(const SequenceSpread spread, SpreadOf(degree, model.heads(), SequenceModeOf(job)));
    bytes.push_back(TrafficOf(heads, spread, element).sent);
    in_turn.push_back(ExchangesInTurn(heads, spread, c.tokens_per_rank, element));
  }
  // Every micro-batch is charged the fewest; a degree that has more pays for the others by the token, as a full group.
  const double fewest = *std::min_element(in_turn.begin(), in_turn.end());
  c.fixed += model.layers() * fewest * all_to_all.latency;
  c.exchange_bytes_per_token = model.layers() * bytes.back();
  for (size_t k = 0; k < bytes.size(); ++k) {
    const double wait = (in_turn[k] - fewest) * all_to_all.latency / static_cast<double>(c.tokens_per_rank);
    c.bandwidth.push_back(c.exchange_bytes_per_token / model.layers() / (bytes[k] * per_byte + wait));
  }
  return absl::OkStatus();
}

}  // namespace

SequenceMode SequenceModeOf(const config::Job& job) {
  switch (job.parallel().sequence().mode()) {
    case config::SequenceConfig::ULYSSES:
      return SequenceMode::kUlysses;
    case config::SequenceConfig::RING:
      return SequenceMode::kRing;
    case config::SequenceConfig::AUTO:
      break;
  }
  return SequenceMode::kAuto;
}

DegreeLimit SequenceDegreeLimit(const config::Job& job) {
  const auto& sequence = job.parallel().sequence();
  const auto heads = static_cast<int>(job.model().transformer().heads());
  DegreeLimit limit;
  if (sequence.has_max_degree()) limit = {sequence.max_degree(), "parallel.sequence.max_degree"};
  if (SequenceModeOf(job) == SequenceMode::kUlysses && heads < limit.degree) limit = {heads, "heads in mode ULYSSES"};
  return limit;
}

int LargestSequenceDegree(const config::Job& job, int ranks) {
  const int most = std::min(ranks, SequenceDegreeLimit(job).degree);
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(std::max(1, most))));
}

std::string SequenceModesText(const config::Job& job, int ranks) {
  const int64_t heads = job.model().transformer().heads(), key_heads = job.model().transformer().kv_heads();
  std::string text;
  for (int degree = 2; degree <= LargestSequenceDegree(job, ranks); degree *= 2) {
    const auto spread = SpreadOf(degree, heads, SequenceModeOf(job));
    if (!spread.ok()) break;
    const int u = spread->ulysses;
    absl::StrAppend(&text, text.empty() ? "" : "\n", "  degree ", degree, ": ");
    if (u > 1) absl::StrAppend(&text, heads, " heads between ", u, " ranks");
    if (u > 1 && heads % u != 0) absl::StrAppend(&text, ", not evenly: up to ", (heads + u - 1) / u, " each");
    if (u > key_heads) absl::StrAppend(&text, ", key heads on several");
    if (u > 1 && spread->ring > 1) absl::StrAppend(&text, "; ");
    if (spread->ring > 1) absl::StrAppend(&text, "keys go round between ", spread->ring, u > 1 ? " teams" : " ranks");
  }
  return text;
}

absl::StatusOr<SequenceSpreading> SequencesFor(const config::Job& job, const CalibrationKey& key,
                                               absl::FunctionRef<double()> product_peak, const Mesh& mesh,
                                               Communicator& world, std::string* how) {
  const auto& model = job.model().transformer();
  SequenceSpreading sequences{.mesh = &mesh, .mode = SequenceModeOf(job), .heads = model.heads(), .costs = {}};
  ComputeCosts costs;
  ExchangeCosts exchange;
  absl::Status failed;
  double calibrated = 0;
  std::string calibrated_text = "as calibrated";
  const bool deterministic = job.parallel().sequence().plans() == config::SequenceConfig::DETERMINISTIC;
  if (world.rank() == 0) {
    const bool named = job.runtime().has_calibration();
    const auto calibration = FindCalibration(named ? job.runtime().calibration() : CalibrationPath(), key,
                                             named ? CalibrationFile::kNamed : CalibrationFile::kUsual);
    const auto known = [&]() -> absl::StatusOr<ComputeCosts> {
      SHOAL_RETURN_IF_ERROR(calibration.status());
      const double peak = deterministic ? calibration->product_peak : product_peak();
      return CalibratedCosts(job, world.size(), *calibration, peak);
    }();
    if (known.ok()) {
      calibrated = 1;
      absl::StrAppend(&calibrated_text, ": ", calibration->key.Text());
      if (calibration->exchange.ranks == world.size()) exchange = calibration->exchange;
    } else if (named || !absl::IsNotFound(known.status())) {
      failed = known.status();
    }
    costs = known.ok() ? *known : EstimatedCosts(job, deterministic ? kNominalPeak : product_peak());
  }
  SHOAL_RETURN_IF_ERROR(failed);
  SHOAL_ASSIGN_OR_RETURN(const auto agreed, AllReduceValues(world,
                                                            {costs.quadratic, costs.linear, costs.fixed, calibrated,
                                                             exchange.ranks > 1 ? 1.0 : 0.0,
                                                             exchange.all_to_all.latency, exchange.all_to_all.per_byte},
                                                            ReduceOp::kSum, {.tag = "costs of sequences"}));
  LinearTime all_to_all{agreed[5], agreed[6]};
  if (agreed[4] == 0 && deterministic) {
    all_to_all = kNominalExchange;
  } else if (agreed[4] == 0 && world.size() > 1) {
    SHOAL_ASSIGN_OR_RETURN(exchange, MeasureExchange(world, 4 << 20, key.threads));
    all_to_all = exchange.all_to_all;
  }
  SequenceCostModel& c = sequences.costs;
  c.quadratic = agreed[0];
  c.linear = agreed[1];
  c.tokens_per_rank = job.micro_batch().tokens();
  c.longest = job.data().max_tokens();
  const DegreeLimit limit = SequenceDegreeLimit(job);
  c.max_degree = limit.degree;
  c.degree_limit = limit.why;
  c.fixed = agreed[2];
  SHOAL_RETURN_IF_ERROR(AddExchanges(job, world.size(), all_to_all, c));
  *how = absl::StrFormat(
      "sequences: %.3g us a token + %.3g ps a token^2 + %.2f ms a micro-batch (%s), %s to exchange a token%s; up to %d "
      "tokens a rank",
      c.linear * 1e6, c.quadratic * 1e12, c.fixed * 1e3,
      agreed[3] > 0   ? calibrated_text
      : deterministic ? "nominal; `shoal calibrate` measures it"
                      : "estimated; `shoal calibrate` measures it",
      HumanBytes(c.exchange_bytes_per_token),
      c.bandwidth.empty() ? "" : absl::StrFormat(" at %s/s", HumanBytes(c.bandwidth.back())), c.tokens_per_rank);
  return sequences;
}

absl::StatusOr<std::unique_ptr<SequenceControl>> ControlFor(const config::Job& job, const SequenceCostModel& costs,
                                                            Mesh& mesh, UpcomingBatch upcoming) {
  const config::SequenceConfig& config = job.parallel().sequence();
  const bool live = config.plans() == config::SequenceConfig::LIVE;
  SequenceControl::Options options{
      .planner = config.planner(),
      .degree = config.degree(),
      .plans = live ? SequenceControl::Plans::kLive : SequenceControl::Plans::kDeterministic,
      .model = costs,
      .seed = job.seed()};
  absl::Status read;
  if (config.has_replay() && mesh.rank() == 0) {
    const auto text = PosixFiles().Read(config.replay());
    read = text.status();
    const std::string lines = text.ok() ? *text : "";
    int line = 0;
    for (const absl::string_view json : absl::StrSplit(lines, '\n')) {
      ++line;
      if (json.empty()) continue;
      auto record = PlanFromJson(json);
      if (!record.ok()) {
        read = Annotate(record.status(), absl::StrCat(config.replay(), ":", line));
        break;
      }
      options.replay.push_back(*std::move(record));
    }
  }
  SHOAL_ASSIGN_OR_RETURN(const std::string failed,
                         BroadcastString(mesh.control(), std::string(read.message()), 0, {.tag = "plans to replay"}));
  if (!failed.empty()) return absl::DataLossError(absl::StrCat("parallel.sequence.replay: ", failed));
  return std::make_unique<SequenceControl>(std::move(options), mesh, std::move(upcoming));
}

}  // namespace shoal
