// Sequence plans in training: made ahead, broadcast, refused by all or none, fitted to times, kept over restarts.
#include "parallel/sequence_control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Plans = SequenceControl::Plans;
using testing::HasSubstr;

SequenceCostModel ControlModel() {
  return {.quadratic = 1e-5,
          .linear = 1e-3,
          .fixed = 0.02,
          .exchange_bytes_per_token = 1000,
          .bandwidth = {8e6, 6e6},
          .tokens_per_rank = 100};
}

// 12 sequences, or `count`, of which any rank holds each.
std::vector<int32_t> LengthsAt(int64_t position, int count = 12) {
  const Rng rng({11, RngPurpose::kTest, 3});
  std::vector<int32_t> lengths;
  for (int k = 0; k < count; ++k)
    lengths.push_back(1 + static_cast<int32_t>(99 * rng.Uniform(0, static_cast<uint64_t>(position + k))));
  return lengths;
}
SequenceBatch BatchAt(int64_t position) {
  return {.first_position = position, .next_position = position + 12, .lengths = LengthsAt(position)};
}

SequenceControl::Options SmallOptions(Plans plans = Plans::kLive) {
  return {.plans = plans, .model = ControlModel(), .seed = 5, .tries = 20};
}

CommOptions Checked() {
  CommOptions options;
  options.check = CommOptions::Check::kOn;
  return options;
}

using Body = std::function<absl::Status(int rank, SequenceControl& control)>;
absl::Status OnRanks(int ranks, const SequenceControl::Options& options, const Body& body,
                     const UpcomingBatch& upcoming = BatchAt) {
  return RunThreadRanks(ranks, Checked(), [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    SequenceControl control(options, *mesh, rank == 0 ? upcoming : nullptr);
    return body(rank, control);
  });
}

// What every rank saw, step by step; equal texts are told from differing ones.
class SeenByRanks {
 public:
  void Add(int rank, const std::string& text) {
    const std::lock_guard lock(mutex_);
    seen_[rank].push_back(text);
  }
  std::vector<std::string> OfAll() const {
    for (const auto& [rank, texts] : seen_) EXPECT_EQ(texts, seen_.at(0)) << "rank " << rank;
    return seen_.at(0);
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<std::string>> seen_;
};

// Groups take `times` what the model says, and the step 0.1 s more.
void EndStep(SequenceControl& control, int ranks, const SequenceCostModel& truth) {
  const SequencePlanRecord& record = control.record();
  std::vector<double> seconds;
  double step = 0.1;
  for (const auto& batch : record.plan.micro_batches) {
    std::vector<double> of_ranks(static_cast<size_t>(ranks), 0.0);
    for (const auto& group : batch.groups) {
      for (int r = group.first_rank; r < group.first_rank + group.degree; ++r)
        of_ranks[static_cast<size_t>(r)] = truth.fixed + GroupSeconds(group, record.lengths, truth);
    }
    step += *std::max_element(of_ranks.begin(), of_ranks.end());
    seconds.insert(seconds.end(), of_ranks.begin(), of_ranks.end());
  }
  control.EndStep(seconds, step);
}

SequenceCostModel Times(double times) {
  SequenceCostModel model = ControlModel();
  model.quadratic *= times;
  model.linear *= times;
  model.fixed *= times;
  for (double& b : model.bandwidth) b /= times;
  return model;
}

TEST(SequenceControl, EveryPlannerPlansOnAnyRanks) {
  for (const SequencePlanner& planner : SequencePlanners()) {
    for (const Plans plans : {Plans::kLive, Plans::kDeterministic}) {
      for (const int ranks : {1, 2, 3, 4}) {
        SequenceControl::Options options = SmallOptions(plans);
        options.planner = planner.name;
        SeenByRanks seen;
        const absl::Status status = OnRanks(ranks, options, [&](int rank, SequenceControl& control) -> absl::Status {
          int64_t step = 0;
          for (const int64_t position : {0, 12, 24, 36, 500, 512, 12, 24}) {  // with a jump and a restart
            const auto lengths = LengthsAt(position);
            SHOAL_ASSIGN_OR_RETURN(const SequencePlanRecord* record, control.BeginStep(++step, position, lengths));
            EXPECT_EQ(record, &control.record());
            EXPECT_EQ(ValidatePlan(record->plan, lengths, ranks, options.model), absl::OkStatus());
            EXPECT_EQ(record->predicted.size(), record->plan.micro_batches.size());
            EXPECT_LE(record->bound, record->planned_seconds);
            EXPECT_EQ(record->planner, planner.name);
            EndStep(control, ranks, Times(2));
            seen.Add(rank, PlanJson(control.record()));
          }
          return absl::OkStatus();
        });
        ASSERT_EQ(status, absl::OkStatus()) << planner.name << " on " << ranks << " ranks";
        EXPECT_EQ(seen.OfAll().size(), 8u);
      }
    }
  }
}

TEST(SequenceControl, PlansAreThereBeforeTheirSteps) {
  for (const Plans plans : {Plans::kLive, Plans::kDeterministic}) {
    ASSERT_EQ(OnRanks(2, SmallOptions(plans),
                      [&](int, SequenceControl& control) -> absl::Status {
                        SHOAL_RETURN_IF_ERROR(control.BeginStep(1, 0, LengthsAt(0)).status());
                        EXPECT_EQ(control.record().source, "inline");
                        EXPECT_EQ(control.record().tier, plans == Plans::kLive ? "tier0" : "full");
                        for (int64_t step = 2; step < 6; ++step) {
                          control.WaitForPlansAheadForTest();
                          const int64_t position = 12 * (step - 1);
                          SHOAL_RETURN_IF_ERROR(control.BeginStep(step, position, LengthsAt(position)).status());
                          EXPECT_EQ(control.record().source, "ahead");
                          EXPECT_EQ(control.record().tier, "full");
                        }
                        return absl::OkStatus();
                      }),
              absl::OkStatus());
  }
}

TEST(SequenceControl, LivePlansNeverWait) {
  for (const char* planner : {"flexsp", "greedy"}) {
    std::promise<void> over;
    const auto released = over.get_future().share();
    SequenceControl::Options options = SmallOptions();
    options.planner = planner;
    const absl::Status status = OnRanks(
        2, options,
        [&](int rank, SequenceControl& control) -> absl::Status {
          absl::Status status;
          for (int64_t step = 1; step < 4 && status.ok(); ++step) {
            status = control.BeginStep(step, 12 * step, LengthsAt(12 * step)).status();
            EXPECT_EQ(control.record().source, "inline");
            EXPECT_EQ(control.record().tier, options.planner == "flexsp" ? "tier0" : "full");
          }
          if (rank == 0) over.set_value();
          return status;
        },
        [released](int64_t position) {  // a slow reader of lengths
          released.wait();
          return BatchAt(position);
        });
    EXPECT_EQ(status, absl::OkStatus());
  }
}

TEST(SequenceControl, DeterministicPlansDoNotDependOnTimes) {
  const auto plans_of = [](double times, int ahead, bool waits) {
    SequenceControl::Options options = SmallOptions(Plans::kDeterministic);
    options.ahead = ahead;
    SeenByRanks seen;
    const absl::Status status = OnRanks(4, options, [&](int rank, SequenceControl& control) -> absl::Status {
      for (int64_t step = 1; step <= 8; ++step) {
        if (waits) control.WaitForPlansAheadForTest();
        SHOAL_RETURN_IF_ERROR(control.BeginStep(step, 12 * step, LengthsAt(12 * step)).status());
        seen.Add(rank, absl::StrCat(control.record().Text(), " ", control.record().plan.Hash()));
        EndStep(control, 4, Times(times));
      }
      EXPECT_EQ(ModelChange(ControlModel(), control.model(), 4), 0);
      return absl::OkStatus();
    });
    EXPECT_EQ(status, absl::OkStatus());
    return seen.OfAll();
  };
  const auto expected = plans_of(1, 2, false);
  EXPECT_EQ(expected.size(), 8u);
  EXPECT_EQ(plans_of(5, 2, true), expected);
  EXPECT_EQ(plans_of(0.2, 0, false), expected);
  EXPECT_EQ(plans_of(1, 5, true), expected);
}

TEST(SequenceControl, AnotherBatchThanExpectedIsPlannedAnew) {
  ASSERT_EQ(OnRanks(2, SmallOptions(),
                    [&](int, SequenceControl& control) -> absl::Status {
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(1, 0, LengthsAt(0)).status());
                      control.WaitForPlansAheadForTest();
                      // The batch grew: the same position, other lengths.
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(2, 12, LengthsAt(12, 20)).status());
                      EXPECT_EQ(control.record().source, "inline");
                      EXPECT_EQ(control.record().lengths.size(), 20u);
                      control.WaitForPlansAheadForTest();
                      // A batch that is two ahead is still of use.
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(3, 36, LengthsAt(36)).status());
                      EXPECT_EQ(control.record().source, "ahead");
                      control.WaitForPlansAheadForTest();
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(4, 36, LengthsAt(36)).status());
                      EXPECT_EQ(control.record().source, "inline");
                      control.WaitForPlansAheadForTest();
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(5, 48, LengthsAt(48)).status());
                      EXPECT_EQ(control.record().source, "ahead");
                      return absl::OkStatus();
                    }),
            absl::OkStatus());
}

// The error of step 2, the same on all ranks, where `received` damages what a rank gets; steps 1 and 3 are good.
absl::Status ErrorOfStep2(int ranks, const std::function<void(int rank, std::string& bytes)>& received,
                          const std::function<std::vector<int32_t>(int rank)>& lengths_of = nullptr) {
  std::mutex mutex;
  std::vector<absl::Status> errors;
  const absl::Status status = RunThreadRanks(ranks, Checked(), [&](int rank, Communicator& world) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(world, {}));
    SequenceControl::Options options = SmallOptions();
    options.received = [&received, rank](int64_t step, std::string& bytes) {
      if (step == 2 && received) received(rank, bytes);
    };
    SequenceControl control(options, *mesh, BatchAt);
    SHOAL_RETURN_IF_ERROR(control.BeginStep(1, 0, LengthsAt(0)).status());
    const auto bad = control.BeginStep(2, 12, lengths_of ? lengths_of(rank) : LengthsAt(12));
    SHOAL_RETURN_IF_ERROR(control.BeginStep(3, 24, LengthsAt(24)).status());
    const std::lock_guard lock(mutex);
    errors.push_back(bad.status());
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
  for (const absl::Status& error : errors) EXPECT_EQ(error, errors[0]);
  return errors.empty() ? absl::OkStatus() : errors[0];
}

TEST(SequenceControl, ABadPlanIsRefusedByAllRanks) {
  for (const int ranks : {1, 2, 4}) {
    const int bad = ranks - 1;
    const std::string refused = absl::StrCat("rank ", bad, ": ");
    const auto expect = [&](absl::StatusCode code, const char* says, const absl::Status& error) {
      EXPECT_EQ(error.code(), code) << error;
      EXPECT_THAT(error.message(), HasSubstr(says));
      EXPECT_THAT(error.message(), HasSubstr("step 2")) << "on " << ranks;
      EXPECT_THAT(error.message(), HasSubstr(ranks > 1 ? refused : ""));
    };
    const uint64_t hash = BatchHash(12, LengthsAt(12));
    const auto changed = [&](const std::function<void(SequencePlanRecord&)>& change) {
      return ErrorOfStep2(ranks, [&](int rank, std::string& bytes) {
        if (rank != bad) return;
        auto record = PlanFromBytes(bytes, 2, hash);
        ASSERT_TRUE(record.ok()) << record.status();
        change(*record);
        bytes = PlanBytes(*record);
      });
    };
    expect(absl::StatusCode::kFailedPrecondition, "stale: of step 1", changed([](auto& r) { r.step = 1; }));
    expect(absl::StatusCode::kFailedPrecondition, "of another batch", changed([](auto& r) { r.batch_hash ^= 1; }));
    expect(absl::StatusCode::kFailedPrecondition, "has sequence 12; the batch has 12",
           changed([](auto& r) { r.plan.micro_batches[0].groups[0].sequences = {12}; }));
    if (ranks == 1) continue;
    const auto damaged = ErrorOfStep2(ranks, [&](int rank, std::string& bytes) {
      if (rank == bad) bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    });
    expect(absl::StatusCode::kDataLoss, "damaged", damaged);
    // Valid, and not what the others have.
    expect(absl::StatusCode::kFailedPrecondition, "hashes to", changed([](auto& r) {
             StepPlan plan;
             for (int32_t k = 0; k < 12; ++k) plan.micro_batches.push_back({{{1, 0, {k}}}});
             r.plan = plan;
             r.predicted.assign(12, 1.0);
           }));
    expect(absl::StatusCode::kFailedPrecondition, "of another batch", ErrorOfStep2(ranks, nullptr, [&](int rank) {
             auto lengths = LengthsAt(12);
             if (rank == bad) ++lengths[3];
             return lengths;
           }));
  }
}

TEST(SequenceControl, ADamagedPlanIsRefusedByEveryRankForItself) {
  const absl::Status error = ErrorOfStep2(3, [](int, std::string& bytes) { bytes.resize(bytes.size() - 1); });
  EXPECT_EQ(error.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(error.message(), HasSubstr("damaged"));
}

TEST(SequenceControl, ErrorsOfPlannersAreThoseOfAllRanks) {
  const auto too_long = [](int) { return std::vector<int32_t>{5, 401}; };
  const absl::Status capacity = ErrorOfStep2(4, nullptr, too_long);
  EXPECT_EQ(capacity.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(capacity, CheckLengths(too_long(0), 4, ControlModel()));

  struct Case {
    SequenceControl::Options options;
    const char* says;
  };
  std::vector<Case> cases(3, {SmallOptions(), ""});
  cases[0].options.planner = "flexps";
  cases[0].says = "did you mean 'flexsp'";
  cases[1].options.planner = "static";
  cases[1].options.degree = 4;
  cases[1].says = "static: degree 4 does not divide 2 ranks";
  cases[2].options.model.linear = -1;
  cases[2].says = "linear is -1";
  for (const Case& c : cases) {
    SeenByRanks seen;
    EXPECT_EQ(OnRanks(2, c.options,
                      [&](int rank, SequenceControl& control) -> absl::Status {
                        const absl::Status error = control.BeginStep(1, 0, LengthsAt(0)).status();
                        EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
                        EXPECT_THAT(error.message(), HasSubstr(c.says));
                        seen.Add(rank, error.ToString());
                        return absl::OkStatus();
                      }),
              absl::OkStatus());
    seen.OfAll();
  }
}

TEST(SequenceControl, TheModelFollowsTimesAfterTheWarmUp) {
  ASSERT_EQ(OnRanks(4, SmallOptions(),
                    [&](int, SequenceControl& control) -> absl::Status {
                      for (int64_t step = 1; step <= 20; ++step) {
                        control.WaitForPlansAheadForTest();
                        SHOAL_RETURN_IF_ERROR(control.BeginStep(step, 12 * step, LengthsAt(12 * step)).status());
                        const SequencePlanRecord& record = control.record();
                        // Plans ahead were made anew once the model had changed by more than a few percent.
                        const double predicted = std::accumulate(record.predicted.begin(), record.predicted.end(), 0.0);
                        EXPECT_NEAR(predicted / record.planned_seconds, 1, 0.04) << "step " << step;
                        EXPECT_LT(record.measured_step, 0);
                        EndStep(control, 4, Times(3));
                        EXPECT_EQ(record.measured.size(), record.predicted.size());
                        EXPECT_GT(record.measured_step, 0.1);
                        EXPECT_EQ(ModelChange(ControlModel(), control.model(), 4) == 0,
                                  step <= SequenceControl::kWarmUpSteps);
                      }
                      EXPECT_LE(ModelChange(Times(3), control.model(), 4), 0.05);
                      EXPECT_NEAR(control.outside(), 0.1, 1e-9);
                      EXPECT_EQ(control.errors().steps, 18);
                      EXPECT_LE(control.errors().median, 0.02);
                      return absl::OkStatus();
                    }),
            absl::OkStatus());
}

// Blobs by name, as a checkpoint holds them.
class Blobs : public StateVisitor {
 public:
  enum class Direction : uint8_t { kSave, kLoad };
  Blobs(std::map<std::string, std::string>& blobs, Direction direction) : blobs_(blobs), direction_(direction) {}
  void Shard(absl::string_view, const Tensor&, const Box&) override {}
  void Scalar(absl::string_view, int64_t&) override {}
  void Scalar(absl::string_view, double&) override {}
  void Blob(absl::string_view name, std::string& value) override {
    std::string& blob = blobs_[std::string(name)];
    (direction_ == Direction::kSave ? blob : value) = direction_ == Direction::kSave ? value : blob;
  }
  bool Has(absl::string_view name) const override {
    return direction_ == Direction::kSave || blobs_.count(std::string(name)) > 0;
  }

 private:
  std::map<std::string, std::string>& blobs_;
  Direction direction_;
};

// Plans and predictions of steps from..to: what is the same in a run that is resumed.
absl::Status GoSteps(SequenceControl& control, int rank, int64_t from, int64_t to, SeenByRanks& seen) {
  for (int64_t step = from; step <= to; ++step) {
    SHOAL_ASSIGN_OR_RETURN(const auto* record, control.BeginStep(step, 12 * step, LengthsAt(12 * step)));
    seen.Add(rank, absl::StrCat(step, " ", record->plan.Hash(), " ", record->planned_seconds));
    EndStep(control, 4, Times(2));
  }
  return absl::OkStatus();
}

TEST(SequenceControl, AResumedRunPlansAsIfItHadNeverStopped) {
  // A live run fits the model; deterministic ones begin from its state.
  std::map<std::string, std::string> fitted, middle;
  ASSERT_EQ(OnRanks(4, SmallOptions(),
                    [&](int rank, SequenceControl& control) -> absl::Status {
                      SeenByRanks ignored;
                      SHOAL_RETURN_IF_ERROR(GoSteps(control, rank, 1, 8, ignored));
                      Blobs blobs(fitted, Blobs::Direction::kSave);
                      if (rank == 0) control.VisitState(blobs);
                      return absl::OkStatus();
                    }),
            absl::OkStatus());
  SeenByRanks whole, resumed;
  std::mutex mutex;
  const auto load = [&](std::map<std::string, std::string>& from, SequenceControl& control) {
    const std::lock_guard lock(mutex);
    Blobs blobs(from, Blobs::Direction::kLoad);
    control.VisitState(blobs);
  };
  ASSERT_EQ(OnRanks(4, SmallOptions(Plans::kDeterministic),
                    [&](int rank, SequenceControl& control) -> absl::Status {
                      load(fitted, control);
                      EXPECT_LE(ModelChange(Times(2), control.model(), 4), 0.1);
                      SHOAL_RETURN_IF_ERROR(GoSteps(control, rank, 9, 12, whole));
                      if (rank == 0) {
                        Blobs blobs(middle, Blobs::Direction::kSave);
                        control.VisitState(blobs);
                      }
                      return GoSteps(control, rank, 13, 18, whole);
                    }),
            absl::OkStatus());
  SequenceControl::Options other = SmallOptions(Plans::kDeterministic);
  other.model = Times(7);  // calibrated anew: the checkpoint's holds
  ASSERT_EQ(OnRanks(4, other,
                    [&](int rank, SequenceControl& control) -> absl::Status {
                      // Plans ahead of another model are forgotten.
                      SHOAL_RETURN_IF_ERROR(control.BeginStep(1, 12 * 12, LengthsAt(12 * 12)).status());
                      control.WaitForPlansAheadForTest();
                      load(middle, control);
                      return GoSteps(control, rank, 13, 18, resumed);
                    }),
            absl::OkStatus());
  const auto all = whole.OfAll();
  EXPECT_EQ(resumed.OfAll(), std::vector<std::string>(all.begin() + 4, all.end()));
}

TEST(SequenceControl, DamagedStateLeavesTheConfigurationsModel) {
  std::map<std::string, std::string> blobs = {{"sequence.control", "{"}};
  EXPECT_EQ(OnRanks(1, SmallOptions(),
                    [&](int, SequenceControl& control) -> absl::Status {
                      Blobs visitor(blobs, Blobs::Direction::kLoad);
                      control.VisitState(visitor);
                      EXPECT_EQ(ModelChange(ControlModel(), control.model(), 1), 0);
                      return control.BeginStep(1, 0, LengthsAt(0)).status();
                    }),
            absl::OkStatus());
}

TEST(SequenceControl, ARecordedRunIsReplayed) {
  SeenByRanks recorded;
  ASSERT_EQ(OnRanks(4, SmallOptions(),
                    [&](int rank, SequenceControl& control) -> absl::Status {
                      for (int64_t step = 1; step <= 5; ++step) {
                        SHOAL_RETURN_IF_ERROR(control.BeginStep(step, 12 * step, LengthsAt(12 * step)).status());
                        EndStep(control, 4, Times(2));
                        recorded.Add(rank, PlanJson(control.record()));
                      }
                      return absl::OkStatus();
                    }),
            absl::OkStatus());
  SequenceControl::Options options = SmallOptions();
  options.planner = "greedy";
  for (const std::string& line : recorded.OfAll()) {
    const auto record = PlanFromJson(line);
    ASSERT_TRUE(record.ok()) << record.status();
    options.replay.push_back(*record);
  }
  EXPECT_EQ(OnRanks(4, options,
                    [&](int, SequenceControl& control) -> absl::Status {
                      for (int64_t step = 1; step <= 6; ++step) {
                        SHOAL_ASSIGN_OR_RETURN(const auto* record,
                                               control.BeginStep(step, 12 * step, LengthsAt(12 * step)));
                        EXPECT_EQ(record->tier, step <= 5 ? "replayed" : "full");
                        if (step > 5) continue;
                        EXPECT_EQ(record->plan, options.replay[static_cast<size_t>(step) - 1].plan);
                      }
                      const absl::Status other = control.BeginStep(3, 24, LengthsAt(24)).status();
                      EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
                      EXPECT_THAT(other.message(), HasSubstr("the recorded plan of step 3 is of a batch of 12"));
                      return absl::OkStatus();
                    }),
            absl::OkStatus());
}

TEST(SequenceControl, AnEmptyBatchAndTheEndOfDataArePlanned) {
  EXPECT_EQ(OnRanks(
                2, SmallOptions(),
                [&](int, SequenceControl& control) -> absl::Status {
                  SHOAL_RETURN_IF_ERROR(control.BeginStep(1, 0, LengthsAt(0)).status());
                  control.WaitForPlansAheadForTest();
                  SHOAL_ASSIGN_OR_RETURN(const auto* record, control.BeginStep(2, 12, {}));
                  EXPECT_EQ(record->Text(), "");
                  control.EndStep({}, 0.01);
                  control.WaitForPlansAheadForTest();
                  return absl::OkStatus();
                },
                [](int64_t position) {
                  return position == 0
                             ? BatchAt(0)
                             : SequenceBatch{.first_position = position, .next_position = position, .lengths = {}};
                }),
            absl::OkStatus());
}

}  // namespace
}  // namespace shoal
