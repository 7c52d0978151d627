// What the sequence planners are made of: sequences in descending order with their times at every degree, packing to
// deadlines, sorted chunks, single degrees. Internal to parallel/sequence_*.cc.
//
// "Load" is seconds of a group or micro-batch without the fixed part; "level" is log2 of a degree; a "position" counts
// sequences from the longest to the shortest (ties: the earlier in the batch first).
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "parallel/sequence_planner.h"

namespace shoal::sequences {

// A request, with what packing asks again and again worked out once. Keeps a reference to the request's lengths.
class PackingProblem {
 public:
  explicit PackingProblem(const SequencePlanRequest& request);

  int size() const { return static_cast<int>(order_.size()); }
  int ranks() const { return ranks_; }
  int levels() const { return levels_; }  // degrees 1, 2, .. 2^(levels-1)
  double fixed() const { return model_.fixed; }
  const SequenceCostModel& model() const { return model_; }
  int32_t sequence(int position) const { return order_[static_cast<size_t>(position)]; }
  int64_t tokens(int position) const { return tokens_[static_cast<size_t>(position)]; }
  // Of each level.
  const double* seconds(int position) const { return &seconds_[static_cast<size_t>(position * levels_)]; }
  int least_level(int position) const { return least_[static_cast<size_t>(position)]; }     // that holds it
  double shortest(int position) const { return shortest_[static_cast<size_t>(position)]; }  // over levels that hold it
  int64_t capacity(int level) const { return model_.tokens_per_rank << level; }
  int64_t capacity() const { return model_.tokens_per_rank * ranks_; }
  // Levels from the one with the least rank-seconds per token to the dearest, and the place of each level therein. The
  // same for sequences of every length: what differs between degrees is linear in tokens.
  const std::vector<int>& by_price() const { return by_price_; }
  int price(int level) const { return price_[static_cast<size_t>(level)]; }
  // Sums over positions [begin, end): tokens, and the least rank-seconds.
  int64_t tokens(int begin, int end) const {
    return token_sum_[static_cast<size_t>(end)] - token_sum_[static_cast<size_t>(begin)];
  }
  double area(int begin, int end) const {
    return area_sum_[static_cast<size_t>(end)] - area_sum_[static_cast<size_t>(begin)];
  }
  // No plan has fewer micro-batches.
  int least_batches() const { return static_cast<int>((tokens(0, size()) + capacity() - 1) / capacity()); }

 private:
  const SequenceCostModel& model_;
  int ranks_, levels_;
  std::vector<int32_t> order_;
  std::vector<int64_t> tokens_, token_sum_;
  std::vector<double> seconds_, shortest_, area_sum_;
  std::vector<int> least_, by_price_, price_;
};

// A plan being made, of all positions or of a range of them.
struct Draft {
  struct Group {
    int level = 0, batch = 0;
    double seconds = 0;
    int64_t tokens = 0;
  };
  std::vector<Group> groups;
  std::vector<int> group_of;  // [position - first]
  std::vector<double> loads;  // of each micro-batch
  std::vector<int> floors;    // of each micro-batch: the least level of its groups when it was packed
  double seconds = std::numeric_limits<double>::infinity();  // of all micro-batches, with their fixed parts
};

// First-fit decreasing into the micro-batches of given deadlines. Keeps its memory between calls.
class Packer {
 public:
  explicit Packer(const PackingProblem& problem);

  // Puts each of positions [begin, end), from the longest on, where it takes the least rank-seconds: into the open
  // group with the least slack, or into a new one of the least degree, 2^floor of its micro-batch at least, that meets
  // the deadline. False if one fits nowhere. O(sequences x groups).
  bool Pack(int begin, int end, absl::Span<const double> deadlines, absl::Span<const int> floors);
  // Of the last Pack, which succeeded. Micro-batches that stayed empty are left out.
  Draft Result() const;
  double seconds() const { return seconds_; }  // of that result
  int64_t packs() const { return packs_; }

 private:
  struct Open {                   // groups of one level
    std::vector<double> seconds;  // left until the deadline
    std::vector<int64_t> tokens;  // left
    std::vector<int> group;
  };
  struct Place {
    int level = -1, batch = 0;
    double slack = 0;
  };
  Place NewGroup(int position) const;
  int BestFit(const Open& open, double seconds, int64_t tokens) const;
  void Measure(size_t batches);

  const PackingProblem& problem_;
  std::vector<Open> open_;
  std::vector<Draft::Group> groups_;
  std::vector<int> group_of_, free_, floors_;
  std::vector<double> deadlines_, loads_;
  double seconds_ = 0;
  int64_t packs_ = 0;
};

// Chunks of consecutive positions, at most `chunks`, the largest with as few tokens as possible (FlexSP Eq. 24; by
// bisection). The first position of each, and the end.
std::vector<int> CutByTokens(const PackingProblem& problem, int chunks);

// The shortest micro-batch found for positions [begin, end): packs to deadlines, bisected for every floor of degrees.
// Floors matter: small groups fragment memory. False if nothing fits.
bool PackChunk(const PackingProblem& problem, Packer& packer, int begin, int end, Draft* best);

// CutByTokens and PackChunk of its chunks: a draft for each number of chunks, from the least possible to four more
// (more if none of those fits). May be empty.
std::vector<Draft> SortedChunks(const PackingProblem& problem, Packer& packer);

// Lengths, in descending order, each raised to the greatest of its bucket of consecutive ones: at most `limits`
// buckets, with the least sum of what is added (FlexSP Eq. 15).
std::vector<int32_t> RoundUp(absl::Span<const int32_t> lengths, int limits);

// FlexSP's pipeline: SortedChunks with the lengths of a chunk rounded up while it plans; the best number of chunks by
// what it sees. No groups if nothing fits.
Draft RoundedChunks(const PackingProblem& problem);

// Groups of one degree only, as many as fit side by side: best fit by tokens, and micro-batches of groups that take
// about as long. Infinite if the longest sequence does not fit.
Draft SingleDegree(const PackingProblem& problem, int level);

// Megatron-LM's order of choices, see sequence_baselines.cc.
Draft Greedy(const PackingProblem& problem);

// Doubles the longest group of a micro-batch as long as idle ranks allow and it becomes shorter.
void GrowGroups(const PackingProblem& problem, Draft& draft);

// The best of SortedChunks, every SingleDegree and Greedy. `chunks`, if given: what SortedChunks returned.
Draft Tier0(const PackingProblem& problem, Packer& packer, std::vector<Draft>* chunks);

// Sets loads and seconds from the groups, and floors that are not set to 0.
void MeasureDraft(const PackingProblem& problem, Draft& draft);

// The draft of all positions as a plan: micro-batches from the longest to the shortest, aligned groups.
StepPlan Finish(const PackingProblem& problem, const Draft& draft);

}  // namespace shoal::sequences
