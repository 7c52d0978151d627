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
  if (request.granularity == ShardGranularity::kMatrix) unit = std::max<int64_t>(1, param.size());
  return bucket.offsets[which] + (inside + unit - 1) / unit * unit;
}

void AssignOwners(const ShardRequest& request, Bucket& bucket) {
  bucket.owned.resize(request.ranks);
  int64_t begin = 0;
  for (int rank = 0; rank < request.ranks; ++rank) {
    // Sixteen elements: a shard's first one stands on a cache line.
    const int64_t even = (bucket.size * (rank + 1) / request.ranks + 15) / 16 * 16;
    const int64_t end = rank + 1 == request.ranks ? bucket.size : std::max(begin, Border(request, bucket, even));
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
    if (plan.buckets.empty() || full) plan.buckets.emplace_back();
    Bucket& bucket = plan.buckets.back();
    bucket.params.push_back(param.id);
    bucket.offsets.push_back(bucket.size);
    bucket.size += param.size();
    plan.bucket_of[param.id] = static_cast<int>(plan.buckets.size()) - 1;
  }
  for (Bucket& bucket : plan.buckets) AssignOwners(request, bucket);
  return plan;
}

}  // namespace shoal
