// UnitStore: weights of which a rank holds its own shard, and whole ones only while they are used (ZeRO 3).
//
// A unit is a bucket of the shard plan. The first use of one gathers it; the order of uses in the first training pass
// and in the first evaluation is recorded, and since control flow does not depend on data it is every later pass's, on
// every rank: from then on the next kAhead units of that order are gathered while the present one is computed with, and
// what is neither used nor next is let go. A pass that leaves its record is recorded anew. Whole units are live blocks
// of an arena, so memory follows program order alone. Gathers are collective: every rank runs every pass. Belongs to
// the main thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "parallel/sharder.h"
#include "runtime/module/param.h"
#include "runtime/tensor/arena.h"

namespace shoal {

class UnitStore {
 public:
  static constexpr size_t kAhead = 2;
  enum class Pass : uint8_t { kTraining, kEvaluation };

  // `shards`: each unit's own run in compute dtype, flat, views. `plan`, `ranks` and `arena` outlive it.
  UnitStore(const ShardPlan& plan, std::vector<Tensor> shards, Communicator& ranks, Arena& arena);

  // A micro-batch's forward and backward, or an evaluation's forward, begins: its first units are on their way.
  // Communication errors of what was still under way.
  absl::Status BeginPass(Pass pass);
  // The whole weight; valid while its handle is. In a pass this counts as a use; outside one it gathers only what is
  // not there. Communication errors.
  absl::StatusOr<Tensor> Weight(const Param& param);
  // Ends the pass, and lets all units go: shards may change.
  absl::Status Release();

  int64_t shard_bytes() const;
  // Most bytes of whole units held at once so far.
  int64_t peak_bytes() const { return peak_; }
  // Seconds spent waiting for gathers since the last call.
  double TakeWaited();

 private:
  struct Order {
    std::vector<size_t> units;  // a unit may come again, but not twice in a row
    enum class State : uint8_t { kNone, kRecording, kKnown } state = State::kNone;
  };
  struct Unit {
    Tensor whole;  // undefined: only the shard is there
    WorkPtr work;  // of the gather; null once it is known to be done
  };
  absl::Status Use(size_t unit);
  absl::Status Hold(const std::vector<size_t>& wanted);
  std::vector<size_t> Ahead(std::vector<size_t> from) const;
  absl::Status Await(Unit& unit);

  const ShardPlan& plan_;
  const std::vector<Tensor> shards_;
  Communicator& ranks_;
  Arena& arena_;
  std::vector<int64_t> offset_of_;  // by Param::id: in its unit, in elements
  std::vector<Unit> units_;
  std::vector<size_t> held_;  // units that are whole or on their way
  Order orders_[2];
  Order* order_ = nullptr;             // of the pass under way; null: there is none
  size_t next_ = 0;                    // in a known order
  size_t current_ = 0, previous_ = 0;  // units in use; units_.size(): none
  int64_t bytes_ = 0, peak_ = 0;
  double waited_ = 0;
};

}  // namespace shoal
