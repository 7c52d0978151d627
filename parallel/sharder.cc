#include "parallel/sharder.h"

#include <algorithm>

namespace shoal {

int64_t RowElements(const Shape& shape) {
  if (shape.size() < 2) return 1;
  return shape[0] == 0 ? 0 : NumElements(shape) / shape[0];
}

namespace {

// The nearest place at or after `wanted` in the bucket where a shard may end.
int64_t Border(const ShardRequest& request, const Bucket& bucket, int64_t wanted) {
  if (wanted >= bucket.size) return bucket.size;
  const size_t which = static_cast<size_t>(std::upper_bound(bucket.offsets.begin(), bucket.offsets.end(), wanted) -
                                           bucket.offsets.begin()) -
                       1;
  const Param& param = *request.params[bucket.params[which]];
  const int64_t inside = wanted - bucket.offsets[which];
  int64_t unit = 1;
  if (request.granularity == ShardGranularity::kRow) unit = std::max<int64_t>(1, RowElements(param.shape));
  return bucket.offsets[which] + (inside + unit - 1) / unit * unit;
}

// Where each rank's run of the bucket ends: about equally many elements.
std::vector<int64_t> EvenBorders(const ShardRequest& request, const Bucket& bucket) {
  std::vector<int64_t> borders;
  int64_t begin = 0;
  for (int rank = 0; rank < request.ranks; ++rank) {
    // Sixteen elements: a shard's first one stands on a cache line.
    const int64_t even = (bucket.size * (rank + 1) / request.ranks + 15) / 16 * 16;
    begin = rank + 1 == request.ranks ? bucket.size : std::max(begin, Border(request, bucket, even));
    borders.push_back(begin);
  }
  return borders;
}

// Where each rank's run of whole tensors ends, such that the sum of squares of the ranks' loads is least; `load` then
// includes the bucket. By dynamic programming over how many tensors the first ranks have.
std::vector<int64_t> BalancedBorders(const ShardRequest& request, const Bucket& bucket, std::vector<double>& load) {
  const size_t tensors = bucket.params.size(), ranks = load.size();
  std::vector<double> cost(tensors + 1);  // of all tensors before each
  for (size_t i = 0; i < tensors; ++i) {
    const Param& param = *request.params[bucket.params[i]];
    cost[i + 1] = cost[i] + (request.cost.empty() ? static_cast<double>(param.size()) : request.cost[param.id]);
  }
  const auto squared = [&](size_t rank, size_t begin, size_t end) {
    const double sum = load[rank] + cost[end] - cost[begin];
    return sum * sum;
  };
  // least[r][i]: of ranks 0..r together when they have the first i tensors; begins[r][i]: where r's run then begins.
  std::vector<std::vector<double>> least(ranks, std::vector<double>(tensors + 1));
  std::vector<std::vector<size_t>> begins(ranks, std::vector<size_t>(tensors + 1, 0));
  for (size_t i = 0; i <= tensors; ++i) least[0][i] = squared(0, 0, i);
  for (size_t r = 1; r < ranks; ++r) {
    for (size_t i = 0; i <= tensors; ++i) {
      least[r][i] = least[r - 1][0] + squared(r, 0, i);
      for (size_t begin = 1; begin <= i; ++begin) {
        const double sum = least[r - 1][begin] + squared(r, begin, i);
        if (sum >= least[r][i]) continue;
        least[r][i] = sum;
        begins[r][i] = begin;
      }
    }
  }
  std::vector<int64_t> borders(ranks);
  size_t end = tensors;
  for (size_t r = ranks; r-- > 0;) {
    borders[r] = end == tensors ? bucket.size : bucket.offsets[end];
    load[r] += cost[end] - cost[begins[r][end]];
    end = begins[r][end];
  }
  return borders;
}

void AssignOwners(const ShardRequest& request, std::vector<double>& load, Bucket& bucket) {
  bucket.owned.resize(request.ranks);
  const std::vector<int64_t> borders = request.granularity == ShardGranularity::kMatrix
                                           ? BalancedBorders(request, bucket, load)
                                           : EvenBorders(request, bucket);
  int64_t begin = 0;
  for (int rank = 0; rank < request.ranks; ++rank) {
    const int64_t end = borders[rank];
    bucket.counts.push_back(end - begin);
    for (size_t i = 0; i < bucket.params.size(); ++i) {
      const int64_t first = bucket.offsets[i], last = first + request.params[bucket.params[i]]->size();
      const int64_t from = std::max(begin, first), to = std::min(end, last);
      if (from < to) bucket.owned[rank].push_back({bucket.params[i], from - first, to - first, from});
    }
    begin = end;
  }
}

}  // namespace

ShardPlan PlanShards(const ShardRequest& request) {
  ShardPlan plan;
  plan.bucket_of.resize(request.params.size(), -1);
  // Backward finishes parameters from the last to the first.
  for (size_t i = request.params.size(); i-- > 0;) {
    const Param& param = *request.params[i];
    const bool full = !plan.buckets.empty() && plan.buckets.back().size > 0 &&
                      (plan.buckets.back().size + param.size()) * 4 > request.bucket_bytes;
    const bool apart = request.tied == Tied::kApart && !plan.buckets.empty() &&
                       (request.params[plan.buckets.back().params.back()]->uses > 1) != (param.uses > 1);
    if (plan.buckets.empty() || full || apart) plan.buckets.emplace_back();
    Bucket& bucket = plan.buckets.back();
    bucket.params.push_back(param.id);
    bucket.offsets.push_back(bucket.size);
    bucket.size += param.size();
    plan.bucket_of[param.id] = static_cast<int>(plan.buckets.size()) - 1;
  }
  std::vector<double> load(request.ranks);
  for (Bucket& bucket : plan.buckets) AssignOwners(request, load, bucket);
  return plan;
}

}  // namespace shoal
