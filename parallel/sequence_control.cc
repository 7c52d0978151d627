#include "parallel/sequence_control.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr double kAboutAsLong = 0.9;

// Plans ahead are made anew if times have changed by more: less moves few sequences, and noise alone makes as much.
constexpr double kRemake = 0.03;
constexpr char kState[] = "sequence.control";

// A status as text and back: what a rank tells the others.
std::string ToText(const absl::Status& status) { return absl::StrCat(status.raw_code(), " ", status.message()); }
absl::Status FromText(absl::string_view text) {
  const size_t space = text.find(' ');
  int code = 0;
  if (space == absl::string_view::npos || !absl::SimpleAtoi(text.substr(0, space), &code))
    return absl::InternalError(absl::StrCat("a rank says '", text, "' of its sequence plan"));
  return {static_cast<absl::StatusCode>(code), text.substr(space + 1)};
}

// One error of what every rank says; OK: nothing against the plan. At least one has something to say.
absl::Status ErrorOfRanks(absl::Span<const std::string> of_ranks, int64_t step) {
  constexpr size_t kMost = 4;                                        // different ones in the text
  std::vector<std::pair<absl::Status, std::vector<size_t>>> errors;  // and their ranks
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
    const absl::Status status = FromText(of_ranks[rank]);
    if (status.ok()) continue;
    const auto at = std::find_if(errors.begin(), errors.end(), [&](const auto& e) { return e.first == status; });
    if (at == errors.end()) {
      errors.push_back({status, {rank}});
    } else {
      at->second.push_back(rank);
    }
  }
  if (errors.size() == 1 && errors[0].second.size() == of_ranks.size()) return errors[0].first;
  std::vector<std::string> parts;
  for (const auto& [status, ranks] : errors) {
    if (parts.size() == kMost) break;
    parts.push_back(
        absl::StrCat(ranks.size() > 1 ? "ranks " : "rank ", absl::StrJoin(ranks, ", "), ": ", status.message()));
  }
  if (errors.size() > kMost) parts.push_back(absl::StrCat(errors.size() - kMost, " more"));
  return {errors[0].first.code(),
          absl::StrCat("the sequence plan of step ", step, " is refused: ", absl::StrJoin(parts, "; "))};
}

}  // namespace

SequenceControl::SequenceControl(Options options, Mesh& mesh, UpcomingBatch upcoming)
    : options_(std::move(options)),
      mesh_(mesh),
      fit_(options_.model, mesh.size(),
           options_.plans == Plans::kLive ? SequenceCostFit::Coefficients::kFitted
                                          : SequenceCostFit::Coefficients::kFixed),
      planning_(options_.model) {
  if (mesh.rank() != 0) return;
  ahead_ = std::make_unique<PlansAhead>(PlansAhead::Options{.planner = options_.planner,
                                                            .degree = options_.degree,
                                                            .plans = options_.plans,
                                                            .seed = options_.seed,
                                                            .tries = options_.tries,
                                                            .ahead = options_.ahead,
                                                            .ranks = mesh.size()},
                                        planning_, std::move(upcoming));
}

absl::StatusOr<const SequencePlanRecord*> SequenceControl::BeginStep(int64_t step, int64_t first_position,
                                                                     absl::Span<const int32_t> lengths) {
  const uint64_t batch_hash = BatchHash(first_position, lengths);
  std::string mine;
  if (mesh_.rank() == 0) {
    const auto made = MakePlan(step, first_position, lengths, batch_hash);
    mine = made.ok() ? PlanBytes(*made) : PlanErrorBytes(made.status(), step, batch_hash);
  }
  const double begin = SteadySeconds();
  SHOAL_ASSIGN_OR_RETURN(std::string bytes, BroadcastString(mesh_.control(), std::move(mine), 0,
                                                            {.tag = absl::StrCat("sequence plan of step ", step)}));
  if (options_.received) options_.received(step, bytes);
  auto record = Check(bytes, step, batch_hash, lengths);
  SHOAL_RETURN_IF_ERROR(Agree(record, step));
  exchange_seconds_ = SteadySeconds() - begin;
  record_ = *std::move(record);
  record_.lengths.assign(lengths.begin(), lengths.end());
  return &record_;
}

absl::StatusOr<SequencePlanRecord> SequenceControl::MakePlan(int64_t step, int64_t first_position,
                                                             absl::Span<const int32_t> lengths, uint64_t batch_hash) {
  SHOAL_RETURN_IF_ERROR(CheckLengths(lengths, mesh_.size(), fit_.model()));
  SequencePlanRecord record;
  const auto recorded = std::find_if(options_.replay.begin(), options_.replay.end(),
                                     [&](const SequencePlanRecord& r) { return r.step == step; });
  if (recorded != options_.replay.end()) {
    if (recorded->batch_hash != batch_hash)
      return absl::FailedPreconditionError(
          absl::StrCat("the recorded plan of step ", step, " is of a batch of ", recorded->lengths.size(),
                       " sequences from position ", recorded->first_position, ", and this run's has ", lengths.size(),
                       " from ", first_position, ", or of other lengths; replay takes the same data, seed and batch"));
    record = *recorded;
    record.tier = "replayed";
    record.plan_ms = record.exposed_ms = 0;
  } else {
    SHOAL_ASSIGN_OR_RETURN(PlansAhead::Made made, ahead_->Take(first_position, lengths));
    record = {.step = step,
              .first_position = first_position,
              .batch_hash = batch_hash,
              .planner = options_.planner,
              .tier = std::move(made.tier),
              .source = std::move(made.source),
              .plan = std::move(made.step.plan),
              .planned_seconds = made.step.seconds,
              .bound = made.step.bound(),
              .plan_ms = made.plan_ms,
              .exposed_ms = made.exposed_ms};
  }
  record.predicted.clear();
  record.predicted_step = fit_.outside();
  for (const auto& batch : record.plan.micro_batches) {
    record.predicted.push_back(MicroBatchSeconds(batch, lengths, fit_.model()));
    record.predicted_step += record.predicted.back();
  }
  return record;
}

absl::StatusOr<SequencePlanRecord> SequenceControl::Check(absl::string_view bytes, int64_t step, uint64_t batch_hash,
                                                          absl::Span<const int32_t> lengths) const {
  SHOAL_ASSIGN_OR_RETURN(SequencePlanRecord record, PlanFromBytes(bytes, step, batch_hash));
  if (const absl::Status valid = ValidatePlan(record.plan, lengths, mesh_.size(), fit_.model()); !valid.ok())
    return Annotate(valid, absl::StrCat("the sequence plan of step ", step, " is not valid"));
  return record;
}

// One all-reduce while all is well: whether any rank refuses, and the largest and the least hash of what they accept.
absl::Status SequenceControl::Agree(const absl::StatusOr<SequencePlanRecord>& record, int64_t step) {
  const uint64_t hash = record.ok() ? record->plan.Hash() : 0;
  const auto high = static_cast<double>(hash >> 32), low = static_cast<double>(hash & 0xffffffff);
  const std::string tag = absl::StrCat("whether all accept the sequence plan of step ", step);
  SHOAL_ASSIGN_OR_RETURN(const std::vector<double> most,
                         AllReduceValues(mesh_.control(), {record.ok() ? 0.0 : 1.0, high, low, -high, -low},
                                         ReduceOp::kMax, {.tag = tag}));
  const bool equal = most[1] == -most[3] && most[2] == -most[4];
  if (most[0] == 0 && equal) return absl::OkStatus();
  absl::Status status = record.status();
  if (most[0] == 0)
    status = absl::FailedPreconditionError(
        absl::StrCat("its plan ", record->Text(), " hashes to 0x", absl::Hex(hash, absl::kZeroPad16)));
  SHOAL_ASSIGN_OR_RETURN(const auto of_ranks, AllGatherStrings(mesh_.control(), ToText(status), {.tag = tag}));
  return ErrorOfRanks(of_ranks, step);
}

void SequenceControl::EndStep(absl::Span<const double> group_seconds, double step_seconds) {
  const auto ranks = static_cast<size_t>(mesh_.size());
  const auto& batches = record_.plan.micro_batches;
  CHECK_EQ(group_seconds.size(), batches.size() * ranks) << "seconds of every rank in every micro-batch";
  std::vector<SequenceCostFit::GroupTime> groups;
  SequenceCostFit::StepTime time{.seconds = step_seconds, .predicted = record_.predicted_step};
  record_.measured.assign(batches.size(), 0);
  record_.measured_step = step_seconds;
  for (size_t m = 0; m < batches.size(); ++m) {
    std::vector<double> predicted;
    const size_t before = groups.size();
    for (const StepPlan::Group& group : batches[m].groups) {
      SequenceCostFit::GroupTime of{.degree = group.degree};
      for (const int32_t k : group.sequences) {
        const double tokens = record_.lengths[static_cast<size_t>(k)];
        of.squares += tokens * tokens;
        of.tokens += tokens;
      }
      const auto first = group_seconds.begin() + static_cast<int64_t>(m * ranks) + group.first_rank;
      // The ranks of a group end together, and those that came early waited for the last one, which took the least.
      of.seconds = *std::min_element(first, first + group.degree);
      record_.measured[m] = std::max(record_.measured[m], of.seconds);
      groups.push_back(of);
      predicted.push_back(GroupSeconds(group, record_.lengths, fit_.model()));
    }
    // Groups that ought to end together do not: the last of them ends the micro-batch, later than any of them does on
    // average. That is what such a micro-batch takes, so it is what they are said to take.
    const double longest = *std::max_element(predicted.begin(), predicted.end());
    for (size_t g = 0; g < predicted.size(); ++g) {
      if (predicted[g] > kAboutAsLong * longest) groups[before + g].seconds = record_.measured[m];
    }
    time.micro_batches += record_.measured[m];
  }
  if (++steps_ <= kWarmUpSteps) return;
  fit_.AddStep(groups, time);
  if (!ahead_ || ModelChange(planning_, fit_.model(), mesh_.size()) <= kRemake) return;
  planning_ = fit_.model();
  ahead_->SetModel(planning_);
}

void SequenceControl::VisitState(StateVisitor& visitor) {
  if (!visitor.Has(kState)) return;
  std::string text = fit_.Save();
  const std::string before = text;
  visitor.Blob(kState, text);
  if (text == before) return;
  if (const absl::Status loaded = fit_.Load(text); !loaded.ok()) {
    LOG(WARNING) << "sequence plans begin with the model of the configuration: " << loaded.message();
    return;
  }
  planning_ = fit_.model();
  if (ahead_) ahead_->Restart(planning_);
}

void SequenceControl::WaitForPlansAheadForTest() {
  if (ahead_) ahead_->WaitForTest();
}

}  // namespace shoal
