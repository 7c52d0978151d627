// What a rank without work of its own does where forward and backward are collective (ZeRO 3).
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "comm/communicator.h"
#include "launch/job.pb.h"
#include "launch/workload.h"
#include "runtime/module/module.h"

namespace shoal {

// A batch that adds nothing to losses and gradients: of text one without rows, of images a black one without label
// (for evaluation: in training it would enter the running statistics).
Batch IdleBatch(const config::Job& job);

// Calls fn for the held-out batches of this rank, and then with idle ones until all ranks have called it equally often.
class HeldOutTogether {
 public:
  // All outlive it; `ranks` is called in ForEach.
  HeldOutTogether(const config::Job& job, Workload& workload, Communicator& ranks)
      : job_(job), workload_(workload), ranks_(ranks) {}
  // The first error ends it.
  absl::Status ForEach(absl::FunctionRef<absl::Status(const Batch&)> fn);

 private:
  const config::Job& job_;
  Workload& workload_;
  Communicator& ranks_;
  int64_t most_ = -1;  // batches of any rank; < 0: not yet known
};

}  // namespace shoal
