// Attention of sequences whose tokens are spread over a group of ranks (parallel/sequence_shard.h).
//
// Tensors: T_l rows of this rank, R rows of its team; H query and K key heads of size C in all, h and k of them on this
// rank; q, k and v fused in columns, all q heads first. Query heads [i H / u, (i + 1) H / u) are the team's rank i's,
// with all key heads that these use: those of several ranks are sent to each, and their gradients summed in rank order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "parallel/sequence_shard.h"
#include "runtime/module/step_context.h"

namespace shoal {

// Of one layer.
struct AttentionHeads {
  int64_t heads = 1, key_heads = 1, size = 1;  // H, K, C; K divides H
  float scale = 1;
  int64_t columns() const { return (heads + 2 * key_heads) * size; }
};
// The heads of one rank of a team.
struct HeadShare {
  int64_t q_begin = 0, q_end = 0, k_begin = 0, k_end = 0;
  int64_t q() const { return q_end - q_begin; }
  int64_t k() const { return k_end - k_begin; }
};
HeadShare ShareOfHeads(const AttentionHeads& heads, int ulysses, int team_rank);

// What forward keeps; on the frame stack.
struct SequenceAttentionKept {
  Tensor gathered;  // [R, (h + 2k) C]; where no heads are exchanged, `fused` itself
  Tensor block;     // the memory of `gathered`, which backward uses again; undefined where that is `fused`
  Tensor lse;       // [h, R]
  Tensor attended;  // [T_l, H C]: the result
};
// `fused` [T_l, (H + 2K) C] in compute dtype, rotated already; to be kept by the caller where spread.ulysses is 1, else
// free afterwards. Collective over the group, in program order; `name` is the layer's, for errors and traces. Throws
// StepAborted when communication fails.
SequenceAttentionKept SequenceAttentionFwd(StepContext& ctx, const SequenceShard& shard, const AttentionHeads& heads,
                                           absl::string_view name, const Tensor& fused);
// Consumes `kept` and `dattended` [T_l, H C], of which nobody else may hold the memory: it is given back on the way.
// Returns the gradient of `fused`, a live value.
Tensor SequenceAttentionBwd(StepContext& ctx, const SequenceShard& shard, const AttentionHeads& heads,
                            absl::string_view name, SequenceAttentionKept kept, Tensor dattended);

}  // namespace shoal
