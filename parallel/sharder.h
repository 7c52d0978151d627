// Sharder: which rows of which parameter's optimizer state each rank owns, and how parameters lie in gradient buckets.
//
// Pure. Parameters are laid out in the order in which backward finishes them (reverse definition order), cut into
// buckets of about `bucket_bytes`; inside a bucket every rank owns one contiguous run of elements, so one
// reduce-scatter serves the whole bucket (ZeRO 1 to 3) or one all-reduce (ZeRO 0). Granularity is the optimizer's wish:
// shards end at rows, or at whole tensors; uneven and empty shards are legal. Whole tensors are shared out so that the
// rank with the most work, over all buckets, has as little as the order inside buckets allows.
#pragma once

#include <vector>

#include "parallel/box.h"
#include "runtime/module/param.h"

namespace shoal {

enum class ShardGranularity : uint8_t { kElement, kRow, kMatrix };

struct ShardPiece {
  int param = 0;      // Param::id
  int64_t begin = 0;  // elements [begin, end) of the flattened tensor
  int64_t end = 0;
  int64_t bucket_offset = 0;  // where element `begin` stands in its bucket
};

struct Bucket {
  std::vector<int> params;                     // in layout order
  std::vector<int64_t> offsets;                // element offset of each inside the bucket
  int64_t size = 0;                            // elements
  std::vector<int64_t> counts;                 // elements owned by each rank, in rank order; sum = size
  std::vector<std::vector<ShardPiece>> owned;  // [rank] -> pieces
};

struct ShardPlan {
  std::vector<Bucket> buckets;  // in the order in which backward completes them
  std::vector<int> bucket_of;   // by Param::id
};

// Where parameters with several uses (tied weights) go. kApart: none shares a bucket with one that has a single use,
// whose gradients would wait for the last use too.
enum class Tied : uint8_t { kTogether, kApart };

struct ShardRequest {
  std::vector<const Param*> params;  // by id
  int ranks = 1;
  int64_t bucket_bytes = 4 << 20;  // of f32 gradients
  ShardGranularity granularity = ShardGranularity::kElement;
  Tied tied = Tied::kTogether;
  std::vector<double> cost = {};  // kMatrix: of updating each parameter, by id; empty: its elements
};
ShardPlan PlanShards(const ShardRequest& request);

// The piece as boxes of its tensor: 1-D runs of a flattened tensor are named in the checkpoint as boxes of the tensor
// seen as [rows, row size] where they end at rows, and of its flattened 1-D form where not; see CheckpointStore.
int64_t RowElements(const Shape& shape);  // elements of one row (dimension 0); 1 for vectors

}  // namespace shoal
