#include "parallel/sequence_shard.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// Sizes of the 2 r pieces of a sequence of `length`; `loads` are the teams' tokens so far.
std::vector<int64_t> Pieces(int64_t length, std::vector<int64_t>& loads) {
  const auto teams = static_cast<int64_t>(loads.size());
  std::vector<int64_t> sizes(static_cast<size_t>(2 * teams), length / (2 * teams));
  for (int64_t team = 0; team < teams; ++team) loads[team] += 2 * (length / (2 * teams));
  std::vector<int> longer(loads.size());
  for (int64_t left = length % (2 * teams); left > 0; --left) {
    int64_t to = -1;
    for (int64_t team = 0; team < teams; ++team) {
      if (longer[team] < 2 && (to < 0 || loads[team] < loads[to])) to = team;
    }
    ++sizes[longer[to]++ == 0 ? to : 2 * teams - 1 - to];
    ++loads[to];
  }
  return sizes;
}

}  // namespace

absl::StatusOr<SequenceSpread> SpreadOf(int degree, int64_t heads, SequenceMode mode) {
  CHECK(degree >= 1 && std::has_single_bit(static_cast<unsigned>(degree)) && heads >= 1) << degree << ", " << heads;
  if (mode == SequenceMode::kRing) return SequenceSpread{1, degree};
  if (mode == SequenceMode::kUlysses) {
    if (degree <= heads) return SequenceSpread{degree, 1};
    return absl::InvalidArgumentError(absl::StrCat("Ulysses spreads ", heads, " heads over ", heads,
                                                   " ranks at most, not over ", degree,
                                                   "; the modes AUTO and RING go beyond"));
  }
  const auto even = static_cast<int>(std::min<int64_t>(degree, heads & -heads));
  return SequenceSpread{even, degree / even};
}

std::pair<int64_t, int64_t> SequenceShard::RingChunks::Cut(int64_t key_heads, int64_t head_bytes) const {
  constexpr int64_t kMost = 32;  // buffers of five chunks are then a few percent of a rank's activations
  const int64_t chunks = std::clamp<int64_t>(key_heads * head_bytes / bytes, 1, kMost);
  const int64_t slabs = std::min(chunks, key_heads);
  return {slabs, chunks / slabs};
}

int64_t SequenceShard::team_rows(int index) const {
  const auto& of = rows[static_cast<size_t>(index)];
  return std::accumulate(of.begin(), of.end(), int64_t{0});
}

std::vector<SequenceShard::Run> SequenceShard::own_runs() const {
  const auto& of_ranks = rows[static_cast<size_t>(team_index())];
  int64_t skip = std::accumulate(of_ranks.begin(), of_ranks.begin() + team_rank(), int64_t{0}), take = own_rows();
  std::vector<Run> own;
  for (Run run : team_runs[static_cast<size_t>(team_index())]) {
    const int64_t skipped = std::min(skip, run.size());
    skip -= skipped;
    run.begin += static_cast<int32_t>(skipped);
    run.end = static_cast<int32_t>(run.begin + std::min(take, run.size()));
    if (run.size() == 0) continue;
    take -= run.size();
    own.push_back(run);
  }
  return own;
}

std::vector<int32_t> SequenceShard::cu_seqlens() const {
  CHECK_EQ(spread.ring, 1) << "a team of several has no whole sequences";
  std::vector<int32_t> cu = {0};
  for (const Run& run : team_runs[0]) cu.push_back(cu.back() + run.end - run.begin);
  return cu;
}

SequenceShard ShardSequences(absl::Span<const int32_t> lengths, SequenceSpread spread, int rank) {
  SequenceShard shard;
  shard.spread = spread;
  shard.rank = rank;
  const auto teams = static_cast<size_t>(spread.ring);
  shard.team_runs.resize(teams);
  shard.rows.resize(teams);
  std::vector<int64_t> loads(teams);
  for (size_t s = 0; s < lengths.size(); ++s) {
    const std::vector<int64_t> sizes = Pieces(lengths[s], loads);
    int32_t begin = 0;
    for (size_t p = 0; p < sizes.size(); ++p) {
      const auto end = static_cast<int32_t>(begin + sizes[p]);
      auto& runs = shard.team_runs[std::min(p, 2 * teams - 1 - p)];
      const bool follows = !runs.empty() && runs.back().sequence == static_cast<int32_t>(s) && runs.back().end == begin;
      if (follows)
        runs.back().end = end;
      else if (end > begin)
        runs.push_back({static_cast<int32_t>(s), begin, end});
      begin = end;
    }
  }
  for (size_t team = 0; team < teams; ++team) {
    for (int64_t i = 0; i < spread.ulysses; ++i)
      shard.rows[team].push_back(loads[team] * (i + 1) / spread.ulysses - loads[team] * i / spread.ulysses);
  }
  return shard;
}

SequenceShard ShardSequences(absl::Span<const int32_t> lengths, SequenceSpread spread, const Mesh& mesh) {
  SequenceShard shard = ShardSequences(lengths, spread, mesh.rank() % spread.degree());
  shard.group = mesh.sequence_group(spread.degree());
  shard.team = mesh.sequence_group(spread.ulysses);
  CHECK(spread.degree() == 1 || shard.group != nullptr)
      << "rank " << mesh.rank() << " of " << mesh.size() << " has no group of " << spread.degree();
  return shard;
}

}  // namespace shoal
