#include "launch/experiment/run_name.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

constexpr size_t kLongestLabel = 60;

std::string Safe(const std::string& label) {
  const std::string marks = ".+-_";
  std::string safe;
  for (const char c : label.substr(0, kLongestLabel)) {
    const bool stays = absl::ascii_isalnum(static_cast<unsigned char>(c)) || marks.find(c) != std::string::npos;
    if (stays || (!safe.empty() && safe.back() != '-')) safe += stays ? c : '-';
  }
  while (!safe.empty() && safe.back() == '-') safe.pop_back();
  return safe.empty() ? "x" : safe;
}

}  // namespace

std::vector<std::string> SafeLabels(const std::vector<std::string>& labels) {
  std::vector<std::string> safe;
  for (const std::string& label : labels) {
    std::string name = Safe(label);
    for (int k = 2; std::count(safe.begin(), safe.end(), name) > 0; ++k) name = absl::StrCat(Safe(label), "~", k);
    safe.push_back(name);
  }
  return safe;
}

std::string RunName(const std::vector<std::pair<std::string, std::string>>& parts) {
  std::string name;
  for (const auto& [what, label] : parts) absl::StrAppend(&name, name.empty() ? "" : ",", Safe(what), "=", label);
  return name.empty() ? "run" : name;
}

}  // namespace shoal
