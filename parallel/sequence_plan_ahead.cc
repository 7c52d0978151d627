#include "parallel/sequence_plan_ahead.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "parallel/sequence_plan_text.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

// Of this thread, on a processor: what making a plan takes, whoever else runs meanwhile.
double ThreadMs() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

constexpr char kTier0[] = "tier0";

}  // namespace

PlansAhead::PlansAhead(Options options, const SequenceCostModel& model, UpcomingBatch upcoming)
    : options_(std::move(options)), upcoming_(std::move(upcoming)), model_(model) {
  if (options_.ahead > 0 && upcoming_) thread_ = std::thread([this] { Run(); });
}

PlansAhead::~PlansAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

PlansAhead::Plan PlansAhead::Make(const SequenceBatch& batch, const SequenceCostModel& model, Tier tier) const {
  const double begin = ThreadMs();
  // Seeded by what is planned, not by when: a run that is resumed plans a batch again as it did before.
  const SequencePlanRequest request{.lengths = batch.lengths,
                                    .ranks = options_.ranks,
                                    .model = &model,
                                    .tries = options_.tries,
                                    .seed = options_.seed ^ BatchHash(batch.first_position, batch.lengths),
                                    .degree = options_.degree};
  Plan plan{.step = PlanSequences(request, tier == Tier::kTier0 ? kTier0 : options_.planner)};
  plan.plan_ms = ThreadMs() - begin;
  return plan;
}

absl::StatusOr<PlansAhead::Made> PlansAhead::Take(int64_t first_position, absl::Span<const int32_t> lengths) {
  const double begin = SteadySeconds();
  const char* source = "ahead";
  std::optional<Plan> plan;
  Tier tier = Tier::kFull;
  SequenceCostModel model;
  {
    std::unique_lock lock(mutex_);
    while (!entries_.empty() && entries_.front().batch.first_position != first_position) entries_.pop_front();
    if (!entries_.empty() && absl::MakeConstSpan(entries_.front().batch.lengths) == lengths) {
      if (options_.plans == Plans::kDeterministic && !entries_.front().full) {
        source = "waited";
        changed_.wait(lock, [this] { return entries_.front().full.has_value(); });
      }
      Entry& entry = entries_.front();
      tier = entry.full || !entry.tier0 ? Tier::kFull : Tier::kTier0;
      plan = std::move(tier == Tier::kFull ? entry.full : entry.tier0);
      entries_.pop_front();
    } else {
      // Out of order, or another batch than the one that was expected here: the thread starts anew behind it.
      entries_.clear();
      ++drops_;
      fetch_ = first_position;
      passing_ = true;
    }
    idle_ = false;
    model = model_;
  }
  changed_.notify_all();
  if (!plan) {
    source = "inline";
    tier = HasTier0() ? Tier::kTier0 : Tier::kFull;
    plan = Make({.first_position = first_position, .lengths = {lengths.begin(), lengths.end()}}, model, tier);
  }
  if (!plan->step.ok()) return plan->step.status();
  return Made{.step = *std::move(plan->step),
              .tier = tier == Tier::kFull ? "full" : kTier0,
              .source = source,
              .plan_ms = plan->plan_ms,
              .exposed_ms = (SteadySeconds() - begin) * 1e3};
}

void PlansAhead::SetModel(const SequenceCostModel& model) {
  {
    const std::lock_guard lock(mutex_);
    model_ = model;
    ++model_number_;
    idle_ = false;
  }
  changed_.notify_all();
}

void PlansAhead::Restart(const SequenceCostModel& model) {
  {
    const std::lock_guard lock(mutex_);
    entries_.clear();
    ++drops_;
    fetch_.reset();
    passing_ = false;
  }
  SetModel(model);
}

void PlansAhead::WaitForTest() {
  std::unique_lock lock(mutex_);
  if (thread_.joinable()) changed_.wait(lock, [this] { return idle_; });
}

void PlansAhead::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const Task task = NextTask();
    if (task.kind == Task::Kind::kNone) {
      idle_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return stop_ || !idle_; });
      continue;
    }
    lock.unlock();
    if (task.kind == Task::Kind::kFetch) {
      SequenceBatch batch = upcoming_(task.position);
      lock.lock();
      Fetched(task, std::move(batch));
    } else {
      Plan plan = Make(task.batch, task.model, task.tier);
      plan.model = task.model_number;
      lock.lock();
      Publish(task, std::move(plan));
    }
  }
}

PlansAhead::Task PlansAhead::NextTask() {
  if (fetch_ && (passing_ || static_cast<int>(entries_.size()) < options_.ahead))
    return {.kind = Task::Kind::kFetch, .id = drops_, .position = *fetch_};
  const auto task = [&](const Entry& entry, Tier tier) -> Task {
    return {.kind = Task::Kind::kPlan,
            .id = entry.id,
            .tier = tier,
            .batch = entry.batch,
            .model = model_,
            .model_number = model_number_};
  };
  const auto current = [&](const std::optional<Plan>& plan) { return plan && plan->model == model_number_; };
  // A full plan of the model before is better than none of tier 0, so only batches without any plan need that.
  for (const Entry& entry : entries_) {
    if (HasTier0() && !entry.tier0 && !entry.full) return task(entry, Tier::kTier0);
  }
  for (const Entry& entry : entries_) {
    if (!current(entry.full)) return task(entry, Tier::kFull);
  }
  return {};
}

void PlansAhead::Fetched(const Task& task, SequenceBatch batch) {
  if (task.id != drops_) return;
  fetch_.reset();
  if (batch.next_position > batch.first_position) fetch_ = batch.next_position;
  if (!std::exchange(passing_, false)) entries_.push_back({.id = next_id_++, .batch = std::move(batch)});
}

void PlansAhead::Publish(const Task& task, Plan plan) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.id == task.id; });
  if (entry == entries_.end()) return;
  (task.tier == Tier::kTier0 ? entry->tier0 : entry->full) = std::move(plan);
  changed_.notify_all();
}

}  // namespace shoal
