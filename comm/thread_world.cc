#include <mutex>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "comm/group_communicator.h"
#include "comm/thread_transport.h"
#include "comm/world.h"
#include "runtime/base/status.h"

namespace shoal {

absl::Status RunThreadRanks(int ranks, const CommOptions& options,
                            const std::function<absl::Status(int rank, Communicator& world)>& body) {
  auto hub = MakeThreadHub(ranks, options.segment_bytes, options.thread_link_bytes_per_second);
  // Engines end after all ranks' threads: a peer may still read what a failed operation left.
  std::vector<std::shared_ptr<Engine>> engines(ranks);
  std::vector<int> members(ranks);
  std::iota(members.begin(), members.end(), 0);
  for (int r = 0; r < ranks; ++r) {
    std::unique_ptr<FlightRecorder> recorder;
    if (!options.flight_dir.empty()) {
      SHOAL_ASSIGN_OR_RETURN(recorder,
                             FlightRecorder::Open(absl::StrCat(options.flight_dir, "/rank-", r, ".ring"), r, ranks));
    }
    engines[r] = std::make_shared<Engine>(MakeThreadTransport(hub, r), std::move(recorder));
  }
  std::mutex mutex;
  absl::Status first;
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      GroupCommunicator world(engines[r], members, r, 0, "world", options);
      const absl::Status status = body(r, world);
      if (status.ok()) return;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (first.ok()) first = status;
      }
      world.Abort(absl::UnavailableError(absl::StrCat("rank ", r, " failed: ", status.message())));
    });
  }
  for (auto& thread : threads) thread.join();
  return first;
}

}  // namespace shoal
