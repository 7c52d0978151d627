#include "runtime/data/images/bad_images.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/rng.h"

namespace shoal {

void BadImages::Add(const absl::Status& reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!seen_.insert(NameHash(reason.message())).second) return;
  if (named_.size() < kNamed) named_.emplace_back(reason.message());
}

int64_t BadImages::count() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(seen_.size());
}

std::string BadImages::Summary() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (seen_.empty()) return "";
  std::string text =
      absl::StrCat(seen_.size(), seen_.size() == 1 ? " image" : " images", " left out: ", absl::StrJoin(named_, "; "));
  if (seen_.size() > named_.size()) absl::StrAppend(&text, "; and ", seen_.size() - named_.size(), " more");
  return text;
}

}  // namespace shoal
