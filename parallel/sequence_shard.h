// SequenceShard: which tokens of a group's sequences each of its ranks holds, and along which ways its attention
// reaches the others'.
//
// A group of degree d = u r is r teams of u neighbours. Attention of a team's tokens: its ranks exchange tokens for
// heads (all-to-all, DeepSpeed Ulysses, arXiv 2309.14509), so that each has all of the team's tokens for its share of
// heads; then keys and values go round between the teams (ring attention, arXiv 2310.01889). u = d is Ulysses, u = 1
// the ring. Everything else works token by token, and so on the tokens that a rank holds.
//
// Pure but for the communicators it names.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/communicator.h"
#include "parallel/mesh.h"

namespace shoal {

// How a degree is made up of both.
struct SequenceSpread {
  int ulysses = 1, ring = 1;
  int degree() const { return ulysses * ring; }
  bool operator==(const SequenceSpread&) const = default;
};
enum class SequenceMode : uint8_t {
  kAuto,     // the highest power of two of ranks that heads divide over evenly, and a ring of such teams
  kUlysses,  // heads alone, some ranks having one more where they do not divide; needs degree <= heads
  kRing      // the ring alone
};
// `degree` is a power of two. InvalidArgument where kUlysses has fewer heads than ranks.
absl::StatusOr<SequenceSpread> SpreadOf(int degree, int64_t heads, SequenceMode mode);

struct SequenceShard {
  // Tokens [begin, end) of the group's `sequence`-th sequence, as consecutive rows.
  struct Run {
    int32_t sequence = 0, begin = 0, end = 0;
    int64_t size() const { return end - begin; }
    bool operator==(const Run&) const = default;
  };
  // How finely keys and values are cut that go round between teams; both at least 1. Cutting rows changes results by
  // rounding.
  struct RingChunks {
    int64_t bytes = int64_t{1} << 18;  // of a chunk, about, at least: takes a link many times its latency
    int64_t rows = 64;                 // of a share of a run at least, for the products' sake
    // Into how many parts key heads of `head_bytes` each, keys and values, are cut, and the rows of each part.
    std::pair<int64_t, int64_t> Cut(int64_t key_heads, int64_t head_bytes) const;
  };
  SequenceSpread spread;
  int rank = 0;                             // in the group
  std::vector<std::vector<Run>> team_runs;  // of each team, in the order of its rows
  std::vector<std::vector<int64_t>> rows;   // [team][rank of the team]: how many of these each holds
  RingChunks chunks = {};                   // equal on all ranks
  Communicator* group = nullptr;            // of all ranks; null for one rank, and in dry runs. Not owned
  Communicator* team = nullptr;             // of this rank's team; likewise

  int team_index() const { return rank / spread.ulysses; }
  int team_rank() const { return rank % spread.ulysses; }
  int64_t team_rows(int index) const;
  int64_t own_rows() const { return rows[static_cast<size_t>(team_index())][static_cast<size_t>(team_rank())]; }
  // Of this rank, in the order of its rows.
  std::vector<Run> own_runs() const;
  // Offsets of whole sequences in a team's rows, where there is one team.
  std::vector<int32_t> cu_seqlens() const;
};

// The shard of rank `rank` of a group that has sequences of these lengths. Teams get equal numbers of tokens and equal
// work: each sequence is cut in 2 r pieces, of which team i takes the i-th from both ends, and the pieces that are a
// token longer go to the teams with the fewest tokens. Without communicators.
SequenceShard ShardSequences(absl::Span<const int32_t> lengths, SequenceSpread spread, int rank);
// With those of this rank's group of `spread.degree()` ranks of the mesh.
SequenceShard ShardSequences(absl::Span<const int32_t> lengths, SequenceSpread spread, const Mesh& mesh);

}  // namespace shoal
