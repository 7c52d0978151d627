// The only place where std::string_view and absl::string_view meet: Debian 12's Abseil keeps them apart, newer ones
// make them one type. Every interface of Shoal takes absl::string_view.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

inline std::string_view StdView(absl::string_view s) { return std::string_view(s.data(), s.size()); }
inline absl::string_view AbslView(std::string_view s) { return absl::string_view(s.data(), s.size()); }

// The candidate nearest to `word` by edit distance, or "" when none is near enough to be a likely typing error.
std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates);

// "1.8 GiB", "12.0 KiB", "17 B".
std::string HumanBytes(double bytes);
// "42.1k", "1.24M", "950": for counts and rates.
std::string HumanCount(double count);
// "25m", "3h12m", "41s": time left.
std::string HumanDuration(double seconds);

}  // namespace shoal
