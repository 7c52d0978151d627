// PlansAhead: makes the sequence plans of the batches to come, on a thread of its own, while training goes on.
//
// Rank 0's. Takes turns: first tier 0 of every batch ahead (where there is to be one), then the planner's own plan, the
// nearest batch first. A batch that is asked for out of order (a restart, a batch that grew) drops all plans ahead, and
// the thread goes on behind it. A planner works for a bounded number of tries and the thread sleeps when the plans
// ahead are made; what it has begun it ends, for a batch that is gone too.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/sequence_planner.h"

namespace shoal {

struct SequenceBatch {
  int64_t first_position = 0, next_position = 0;  // the next batch's first; not above first_position: there is none
  std::vector<int32_t> lengths = {};
};
// The batch that begins at a position. Pure and thread-safe.
using UpcomingBatch = std::function<SequenceBatch(int64_t first_position)>;

class PlansAhead {
 public:
  enum class Plans : uint8_t {
    kLive,          // never wait: the best plan there is, else one made at once (tier 0 of flexsp)
    kDeterministic  // wait for the planner's own plan
  };
  struct Options {
    std::string planner = "flexsp";
    int degree = 0;  // of planner static
    Plans plans = Plans::kLive;
    uint64_t seed = 0;
    int tries = 0;  // see SequencePlanRequest
    int ahead = 2;  // batches
    int ranks = 1;
  };
  PlansAhead(Options options, const SequenceCostModel& model, UpcomingBatch upcoming);
  ~PlansAhead();  // waits for the plan that is being made

  struct Made {
    PlannedStep step;
    std::string tier, source;  // see SequencePlanRecord
    double plan_ms = 0, exposed_ms = 0;
  };
  // The plan of this batch; those of batches that follow are made from here on. Errors: PlanSequences's.
  absl::StatusOr<Made> Take(int64_t first_position, absl::Span<const int32_t> lengths);

  // Plans are made with this model from now on, those ahead anew. Plans of the model before stay good until then.
  void SetModel(const SequenceCostModel& model);
  // Likewise, and forgets all plans ahead: a run goes on from another state.
  void Restart(const SequenceCostModel& model);
  // Until every plan ahead is made: for tests, which know no other way to be sure.
  void WaitForTest();

 private:
  enum class Tier : uint8_t { kTier0, kFull };
  struct Plan {
    absl::StatusOr<PlannedStep> step;
    double plan_ms = 0;
    int64_t model = 0;  // that it was made with
  };
  struct Entry {
    int64_t id = 0;
    SequenceBatch batch = {};
    std::optional<Plan> tier0 = {}, full = {};
  };
  // What the thread does next.
  struct Task {
    enum class Kind : uint8_t { kNone, kFetch, kPlan } kind = Kind::kNone;
    int64_t id = 0;        // of the entry; of kFetch: drops_ when it was asked for
    int64_t position = 0;  // of kFetch
    Tier tier = Tier::kFull;
    SequenceBatch batch = {};
    SequenceCostModel model = {};
    int64_t model_number = 0;
  };
  bool HasTier0() const { return options_.plans == Plans::kLive && options_.planner == "flexsp"; }
  Plan Make(const SequenceBatch& batch, const SequenceCostModel& model, Tier tier) const;
  void Run();
  // While mutex_ is held.
  Task NextTask();
  void Fetched(const Task& task, SequenceBatch batch);
  void Publish(const Task& task, Plan plan);

  const Options options_;
  const UpcomingBatch upcoming_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  SequenceCostModel model_;
  int64_t model_number_ = 0;
  std::deque<Entry> entries_;  // in order of positions
  int64_t next_id_ = 0, drops_ = 0;
  std::optional<int64_t> fetch_;  // position of the batch to ask for next
  bool passing_ = false;          // that batch is being trained: only what follows it is wanted
  bool idle_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace shoal
