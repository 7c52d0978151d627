#include "parallel/unit_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

bool Holds(const std::vector<size_t>& units, size_t unit) {
  return std::find(units.begin(), units.end(), unit) != units.end();
}

}  // namespace

UnitStore::UnitStore(const ShardPlan& plan, std::vector<Tensor> shards, Communicator& ranks, Arena& arena)
    : plan_(plan),
      shards_(std::move(shards)),
      ranks_(ranks),
      arena_(arena),
      offset_of_(plan.bucket_of.size()),
      units_(plan.buckets.size()),
      current_(units_.size()),
      previous_(units_.size()) {
  for (const Bucket& bucket : plan_.buckets) {
    for (size_t i = 0; i < bucket.params.size(); ++i) offset_of_[bucket.params[i]] = bucket.offsets[i];
  }
}

absl::Status UnitStore::BeginPass(Pass pass) {
  SHOAL_RETURN_IF_ERROR(Release());
  order_ = &orders_[static_cast<size_t>(pass)];
  if (order_->state == Order::State::kKnown) return Hold(Ahead({}));
  order_->state = Order::State::kRecording;
  order_->units.clear();
  return absl::OkStatus();
}

absl::StatusOr<Tensor> UnitStore::Weight(const Param& param) {
  const auto unit = static_cast<size_t>(plan_.bucket_of[param.id]);
  SHOAL_RETURN_IF_ERROR(Use(unit));
  const int64_t begin = offset_of_[param.id];
  return units_[unit].whole.Rows(begin, begin + param.size()).View(param.shape);
}

absl::Status UnitStore::Use(size_t unit) {
  if (unit != current_) {
    previous_ = std::exchange(current_, unit);
    std::vector<size_t> wanted = {unit};
    if (order_ != nullptr && order_->state == Order::State::kKnown &&
        (next_ == order_->units.size() || order_->units[next_] != unit)) {
      order_->state = Order::State::kRecording;
      order_->units.resize(next_);
    }
    if (order_ != nullptr && order_->state == Order::State::kKnown) {
      ++next_;
      wanted = Ahead(std::move(wanted));
    } else {
      if (order_ != nullptr) order_->units.push_back(unit);
      if (previous_ < units_.size()) wanted.push_back(previous_);
    }
    SHOAL_RETURN_IF_ERROR(Hold(wanted));
  }
  return Await(units_[unit]);
}

// `from`, and the units that come next.
std::vector<size_t> UnitStore::Ahead(std::vector<size_t> from) const {
  const size_t most = from.size() + kAhead;
  for (size_t at = next_; at < order_->units.size() && from.size() < most; ++at) {
    if (!Holds(from, order_->units[at])) from.push_back(order_->units[at]);
  }
  return from;
}

// These units, on their way at least, and no others.
absl::Status UnitStore::Hold(const std::vector<size_t>& wanted) {
  for (const size_t unit : std::exchange(held_, {})) {
    if (Holds(wanted, unit)) {
      held_.push_back(unit);
      continue;
    }
    SHOAL_RETURN_IF_ERROR(Await(units_[unit]));
    bytes_ -= units_[unit].whole.bytes();
    Unit gone;
    std::swap(units_[unit], gone);
  }
  for (const size_t unit : wanted) {
    if (Holds(held_, unit)) continue;
    held_.push_back(unit);
    Unit& u = units_[unit];
    u.whole = arena_.Live({plan_.buckets[unit].size}, shards_[unit].dtype());
    bytes_ += u.whole.bytes();
    peak_ = std::max(peak_, bytes_);
    if (u.whole.meta()) continue;
    u.work = ranks_.AllGatherV(shards_[unit], plan_.buckets[unit].counts, arena_.Lend(u.whole),
                               {.tag = absl::StrCat("weight unit ", unit)});
  }
  return absl::OkStatus();
}

absl::Status UnitStore::Await(Unit& unit) {
  if (unit.work == nullptr) return absl::OkStatus();
  const double start = SteadySeconds();
  const absl::Status status = unit.work->Wait();
  waited_ += SteadySeconds() - start;
  if (status.ok()) unit.work = nullptr;
  return status;
}

absl::Status UnitStore::Release() {
  if (order_ != nullptr && order_->state == Order::State::kRecording && !order_->units.empty())
    order_->state = Order::State::kKnown;
  order_ = nullptr;
  next_ = 0;
  current_ = previous_ = units_.size();
  return Hold({});
}

int64_t UnitStore::shard_bytes() const {
  int64_t bytes = 0;
  for (const Tensor& shard : shards_) bytes += shard.bytes();
  return bytes;
}

double UnitStore::TakeWaited() { return std::exchange(waited_, 0); }

}  // namespace shoal
