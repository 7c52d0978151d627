// BadImages: what was left out because it could not be read (data.images.skip_bad_images). Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace shoal {

class BadImages {
 public:
  static constexpr size_t kNamed = 20;

  // `reason` names the file. A file that is met again, in a later epoch, counts once as long as it is among the named.
  void Add(const absl::Status& reason);
  int64_t count() const;
  // "3 images left out: a.jpg: ..., and 12 more"; empty when there is none.
  std::string Summary() const;

 private:
  mutable absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> reasons_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace shoal
