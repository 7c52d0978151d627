// What a sequence planner is asked and what it answers, as plain values: the cost of sequences, the plan of a step, its
// validity, text and hash, its predicted time, and bounds that no plan can beat.
//
// Formulas: FlexSP (arXiv 2412.01523) §4.1.2 for the cost, research/flexsp.md §6.1 (one problem over micro-batches) and
// §6.2 (bounds). Degrees are powers of two. Groups of powers of two in descending order are always aligned, whatever
// the number of ranks (every prefix sum is a multiple of the next degree), so 7 ranks are 4+2+1.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace shoal {

// Time and memory of sequences in a group of `degree` ranks. A group of a micro-batch takes `fixed` + the sum of
// Seconds over its sequences; the micro-batch as long as its longest group.
struct SequenceCostModel {
  double quadratic = 0;                 // a1: seconds per token^2 on one rank, forward and backward, all layers
  double linear = 0;                    // a2: seconds per token on one rank
  double fixed = 0;                     // beta: seconds per micro-batch
  double exchange_bytes_per_token = 0;  // of all exchanges of a step, over all layers; each rank sends its 1/degree.
                                        // One number for all degrees: bandwidths carry what differs
  std::vector<double> bandwidth = {};   // bytes per second of a rank's all-to-all; [k]: degree 2^(k+1); the last holds
                                        // for higher degrees too. Empty: exchanges are free
  int64_t tokens_per_rank = 0;          // capacity; a group of degree d holds d times as many
  int64_t longest = 0;       // tokens of the longest sequence that the job allows, which a static degree has to hold;
                             // 0: the longest of the batch
  int max_degree = 1 << 20;  // that heads or the job allow, on any number of ranks
  // For messages:
  const char* degree_limit = "heads";  // where max_degree comes from
  double bytes_per_token = 0;          // of activations; 0: unknown

  // Of one sequence; linear in 1/degree but for the bandwidth: (a1 s^2 + a2 s + bytes s / bandwidth) / d.
  double Seconds(int64_t tokens, int degree) const;
  // The largest power of two that neither exceeds `ranks` nor max_degree.
  int LargestDegree(int ranks) const {
    return static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks < max_degree ? ranks : max_degree)));
  }
  // InvalidArgument names the number that is NaN, negative or zero where it must not be.
  absl::Status Check() const;
};

// The micro-batches of a step. Ranks that no group has are idle in that micro-batch.
struct StepPlan {
  struct Group {
    int degree = 1;                       // ranks [first_rank, first_rank + degree)
    int first_rank = 0;                   // a multiple of degree
    std::vector<int32_t> sequences = {};  // positions in the batch, ascending
    bool operator==(const Group&) const = default;
  };
  struct MicroBatch {
    std::vector<Group> groups = {};  // from the highest degree to the lowest, without holes
    bool operator==(const MicroBatch&) const = default;
  };
  std::vector<MicroBatch> micro_batches = {};
  bool operator==(const StepPlan&) const = default;

  // "<32,16x2,8x4> <8x8>x2": groups of a micro-batch by degree; equal neighbours once.
  std::string Text() const;
  // Equal on every platform and release; differs (but for collisions) where micro-batches, groups, ranks or sequences
  // do. Ranks compare it before a step.
  uint64_t Hash() const;
};

// InvalidArgument names the sequence that no degree can hold, its tokens and bytes, the capacity, and the degree and
// the limit of lengths that would fit; or a length below 1, a bad model, or fewer ranks than one.
absl::Status CheckLengths(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model);

// FailedPrecondition names what is wrong: a sequence that is missing, twice or out of range, a group that is empty, not
// aligned, out of order, no power of two, beyond the ranks, over a neighbour or over its memory. `lengths` has passed
// CheckLengths.
absl::Status ValidatePlan(const StepPlan& plan, absl::Span<const int32_t> lengths, int ranks,
                          const SequenceCostModel& model);

// Seconds of a group without `fixed`, of a micro-batch with it, of a step.
double GroupSeconds(const StepPlan::Group& group, absl::Span<const int32_t> lengths, const SequenceCostModel& model);
double MicroBatchSeconds(const StepPlan::MicroBatch& batch, absl::Span<const int32_t> lengths,
                         const SequenceCostModel& model);
double PlanCost(const StepPlan& plan, absl::Span<const int32_t> lengths, const SequenceCostModel& model);

// PlanCost by what it is spent on, each the mean over ranks. What sequences compute is the same in every plan; plans
// differ in the other three.
struct StepTerms {
  double quadratic = 0, linear = 0;
  double exchange = 0;
  double fixed = 0;
  double idle = 0;  // waiting for the longest group of a micro-batch, or without a group
  double sum() const { return quadratic + linear + exchange + fixed + idle; }
};
StepTerms TermsOf(const StepPlan& plan, absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model);

// Seconds that no plan of these lengths beats (§6.2); 0 of an empty batch. `lengths` has passed CheckLengths.
//   area (LB1):    (1/N) sum_k min_d d t_d(s_k) + beta ceil(sum s / (N E)), d over degrees that hold s_k
//   longest (LB0): beta ceil(sum s / (N E)) + max_k min_d t_d(s_k)
//   crowding:      what LB1 forgets of the longest sequence, for the kindest degree d that it may get and number M of
//                  micro-batches. Other groups hold (M N - d) E tokens at most: the rest pays for all-to-alls at degree
//                  d. And while it runs, the other N - d ranks do what (N - d) E tokens take at most: what is left of
//                  the area comes after it.
//   lp:            LpBound's (parallel/sequence_lp.h), where it was asked for; 0 otherwise, and of BoundStep
struct StepBounds {
  double area = 0, longest = 0, crowding = 0;
  double lp = 0;
  double quick() const { return std::max({area, longest, crowding}); }
  double best() const { return std::max(quick(), lp); }
};
StepBounds BoundStep(absl::Span<const int32_t> lengths, int ranks, const SequenceCostModel& model);

// What FlexSP's published code assumes of GPT-7B, 13B and 30B on nodes of 8 A100-40GB (research/flexsp.md §2.2), not
// measured here. Capacity: 28 GiB less model states (16 bytes a parameter over all ranks, ZeRO 3; with learned
// positions of `longest` tokens, as there) over activations per token. Its GB/s are 1000 MiB/s. `longest` of the model
// is lowered to what the largest degree holds. InvalidArgument names the models there are, or the ranks that states
// need.
absl::StatusOr<SequenceCostModel> PublishedCostModel(absl::string_view name, int ranks, int64_t longest);

}  // namespace shoal
