// CheckpointStore: saves and loads everything that a StateVisitor sees. One safetensors file per rank, one
// manifest.json with the place and checksum (XXH3) of every piece; loading reshards to any number of ranks.
//
// A checkpoint is a folder step-NNNNNNNN. It is written as step-NNNNNNNN.tmp, synced, and renamed: a folder without
// .tmp is whole. `latest` and `best` name one each. Older ones beyond `keep` go, but never the best.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/communicator.h"
#include "parallel/state.h"
#include "runtime/base/file_system.h"

namespace shoal {

class CheckpointStore {
 public:
  struct Options {
    std::string dir;  // <run>/checkpoints
    int keep = 2;
    enum class Mode : uint8_t { kSync, kAsync } mode = Mode::kAsync;
    FileSystem* files = nullptr;  // null: the real one
  };
  enum class Best : uint8_t { kNo, kYes };

  // `comm` is used by the store's thread alone while a save is pending; it outlives the store.
  CheckpointStore(Options options, Communicator& comm);
  ~CheckpointStore();  // waits for a pending save

  // Collective. Copies the state, then writes it (kAsync: on a thread). Waits for the save before it, and returns that
  // one's error. A failed save leaves older checkpoints and no half-written one.
  absl::Status Save(int64_t step, absl::Span<Stateful* const> state, Best best);
  absl::Status Wait();
  // Collective. Loads the newest checkpoint that is whole on every rank and returns its step; a damaged one is named in
  // the log and the one before it is taken. NotFound when there is none at all, DataLoss when none is good.
  absl::StatusOr<int64_t> LoadNewest(absl::Span<Stateful* const> state);
  // One named folder; a local operation.
  static absl::Status LoadFrom(const std::string& folder, absl::Span<Stateful* const> state,
                               FileSystem* files = nullptr);

  // What was lost or passed over, for the user: messages of LoadNewest.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // Seconds that the last Save held up training.
  double pause_seconds() const { return pause_seconds_; }

 private:
  struct Snapshot;
  absl::Status Write(const Snapshot& snapshot);
  absl::Status WriteTogether(const Snapshot& snapshot, const std::string& folder);
  void Prune(const std::string& newest);
  Options options_;
  Communicator& comm_;
  std::unique_ptr<Snapshot> snapshot_;
  struct Writer;
  std::unique_ptr<Writer> writer_;
  std::vector<std::string> warnings_;
  double pause_seconds_ = 0;
};

// Folders of whole checkpoints of `dir`, oldest first.
std::vector<std::string> ListCheckpoints(FileSystem& files, const std::string& dir);

}  // namespace shoal
