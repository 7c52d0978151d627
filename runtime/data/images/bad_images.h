// BadImages: what was left out because it could not be read (data.images.skip_bad_images). Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"

namespace shoal {

class BadImages {
 public:
  static constexpr size_t kNamed = 20;

  // `reason` names the file. A file that is met again, in a later epoch, counts once.
  void Add(const absl::Status& reason);
  int64_t count() const;
  // "3 images left out: a.jpg: ..., and 12 more"; empty when there is none.
  std::string Summary() const;

 private:
  mutable std::mutex mutex_;
  absl::flat_hash_set<uint64_t> seen_;  // hashes of reasons
  std::vector<std::string> named_;
};

}  // namespace shoal
