#include "launch/memory_check.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "runtime/base/memory.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

std::string Human(int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

}  // namespace

std::string MemoryText(const Prediction& p) {
  return absl::StrFormat(
      "%s per rank predicted (weights %s, optimizer %s; activations %s and gradients %s take turns in %s)",
      Human(p.total()), Human(p.weights + p.masters), Human(p.optimizer + p.averages + p.noise), Human(p.activations),
      Human(p.gradients), Human(p.step));
}

absl::Status CheckMemoryFits(const Prediction& p, const std::string& own_host, Communicator& world) {
  const int64_t available = AvailableBytes();
  SHOAL_ASSIGN_OR_RETURN(
      const auto hosts,
      AllGatherStrings(world, absl::StrCat(own_host, " ", available > 0 ? available : 0), {.tag = "memory"}));
  std::map<std::string, std::pair<int64_t, int64_t>> ranks_and_bytes;  // by host; the least that a rank of it saw
  for (const std::string& text : hosts) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(' ', 1));
    int64_t bytes = 0;
    if (!absl::SimpleAtoi(parts.second, &bytes)) continue;
    auto& [ranks, least] = ranks_and_bytes[parts.first];
    least = ranks++ == 0 ? bytes : std::min(least, bytes);
  }
  for (const auto& [host, have] : ranks_and_bytes) {
    const auto& [ranks, bytes] = have;
    if (bytes == 0 || ranks * p.total() <= bytes) continue;
    return absl::ResourceExhaustedError(absl::StrCat(
        "too little memory", host.empty() ? "" : " on ", host, ": ", ranks,
        ranks == 1 ? " rank needs " : " ranks need ", Human(ranks * p.total()), ", ", Human(bytes),
        " is available. Of each rank: weights ", Human(p.weights + p.masters), ", optimizer ",
        Human(p.optimizer + p.averages + p.noise), ", activations ", Human(p.activations), " and gradients ",
        Human(p.gradients), " by turns in ", Human(p.step), ", copy for checkpoints ", Human(p.checkpoint),
        ". Take a smaller micro_batch, parallel { recompute: MLP } or BLOCK, or more hosts; `shoal "
        "plan` shows the effect"));
  }
  return absl::OkStatus();
}

}  // namespace shoal
