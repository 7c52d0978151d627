// Names of a sweep's runs, which are names of folders too.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace shoal {

constexpr size_t kLongestRunName = 200;  // bytes; file systems take names of 255

// The labels with letters, digits and . + - _ only (others become -), shortened, and still different from each other.
std::vector<std::string> SafeLabels(const std::vector<std::string>& labels);

// "learning_rate=1e-3,seed=2" from names and safe labels; "run" when there are none.
std::string RunName(const std::vector<std::pair<std::string, std::string>>& parts);

}  // namespace shoal
