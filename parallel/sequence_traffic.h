// What attention of sequences over ranks exchanges (parallel/sequence_attention.h), for cost models. Pure.
//
// All figures are of one layer, forward and backward, on one rank of a group; u ranks of a team exchange heads, r teams
// pass keys round.
#pragma once

#include <cstdint>

#include "parallel/sequence_attention.h"

namespace shoal {

// Bytes for each token that the rank holds: of a sequence of s tokens s / (u r).
struct SequenceTraffic {
  // In the buffers of all-to-alls, the rank's own part, 1 / u, included: 2 (2 H + 2 max(K, u)) C elements, and more
  // where the query heads of two ranks share a key head that each could otherwise have alone. Without backward's delta,
  // a number of each head.
  double all_to_all = 0;
  // Keys and values go to r - 1 other teams, forward and once more backward; their gradients, in f32 at least, r times,
  // the last time home.
  double ring = 0;
  // Of both, what leaves the rank.
  double sent = 0;
};
// `element`: bytes of one in compute dtype.
SequenceTraffic TrafficOf(const AttentionHeads& heads, SequenceSpread spread, double element);

// How many exchanges come one after another where the rank holds `rows` tokens: five all-to-alls, and a ring's steps,
// 2 r - 1 of each chunk.
double ExchangesInTurn(const AttentionHeads& heads, SequenceSpread spread, int64_t rows, double element);

}  // namespace shoal
