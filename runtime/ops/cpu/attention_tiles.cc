#include "runtime/ops/cpu/attention_tiles.h"

#include <glog/logging.h>

#include <numeric>

#include "absl/container/flat_hash_map.h"

namespace shoal::cpu {

using ops::AttentionPart;

HeadGroups CheckedGroups(const Tensor& q, const Tensor& k, const Tensor& v, const ops::AttentionOptions& options) {
  CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3) << "attention takes [T, H, C]";
  CHECK(k.SameShape(v) && q.dim(2) == k.dim(2)) << "attention of q " << ShapeString(q.shape()) << ", k "
                                                << ShapeString(k.shape()) << ", v " << ShapeString(v.shape());
  CHECK_GT(options.scale, 0) << "attention's scale is not set";
  HeadGroups groups{q.dim(1), k.dim(1), options.kv_group, options.first_head};
  if (groups.group == 0) {
    CHECK(groups.heads % groups.key_heads == 0 && groups.first == 0)
        << groups.heads << " query heads from " << groups.first << " on to " << groups.key_heads
        << " key heads: kv_group is not set";
    groups.group = groups.heads / groups.key_heads;
  }
  CHECK(groups.first >= 0 && groups.first < groups.group && groups.KeyHead(groups.heads - 1) < groups.key_heads)
      << groups.heads << " query heads from " << groups.first << " of a group of " << groups.group << " on do not fit "
      << groups.key_heads << " key heads";
  return groups;
}

std::vector<AttentionPart> WholeSequences(absl::Span<const int32_t> cu_seqlens) {
  std::vector<AttentionPart> parts;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t begin = cu_seqlens[s], length = cu_seqlens[s + 1] - begin;
    parts.push_back({.q_begin = begin, .q_rows = length, .k_begin = begin, .k_rows = length});
  }
  return parts;
}

void CheckParts(absl::Span<const AttentionPart> parts, const Tensor& q, const Tensor& k) {
  for (const AttentionPart& part : parts) {
    CHECK(part.q_begin >= 0 && part.q_rows >= 0 && part.q_begin + part.q_rows <= q.dim(0) && part.k_begin >= 0 &&
          part.k_rows >= 0 && part.k_begin + part.k_rows <= k.dim(0))
        << "attention of q rows " << part.q_begin << " + " << part.q_rows << " of " << q.dim(0) << " and k rows "
        << part.k_begin << " + " << part.k_rows << " of " << k.dim(0);
  }
}

PartSpans::PartSpans(absl::Span<const AttentionPart> parts, PartSide side) {
  const bool queries = side == PartSide::kQueries;
  const auto begin = queries ? &AttentionPart::q_begin : &AttentionPart::k_begin;
  const auto rows = queries ? &AttentionPart::q_rows : &AttentionPart::k_rows;
  const auto position = queries ? &AttentionPart::q_position : &AttentionPart::k_position;
  const auto empty = [](const AttentionPart& part) {
    return part.q_rows == 0 || part.k_rows == 0 || KeysBefore(part, part.q_rows) <= 0;
  };
  std::vector<int64_t> borders;
  for (const AttentionPart& part : parts) {
    if (empty(part)) continue;
    borders.push_back(part.*begin);
    borders.push_back(part.*begin + part.*rows);
  }
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  for (const AttentionPart& part : parts) {
    if (empty(part)) continue;
    for (auto at = std::lower_bound(borders.begin(), borders.end(), part.*begin); *at < part.*begin + part.*rows;
         ++at) {
      AttentionPart& cut = parts_.emplace_back(part);
      cut.*begin = *at;
      cut.*rows = at[1] - *at;
      cut.*position += *at - part.*begin;
      if (empty(cut)) parts_.pop_back();
    }
  }
  std::stable_sort(parts_.begin(), parts_.end(),
                   [&](const AttentionPart& a, const AttentionPart& b) { return a.*begin < b.*begin; });
  for (size_t from = 0, to = 0; from < parts_.size(); from = to) {
    while (to < parts_.size() && parts_[to].*begin == parts_[from].*begin) ++to;
    spans_.push_back(absl::MakeConstSpan(parts_).subspan(from, to - from));
  }
}

std::vector<size_t> ClustersByQueries(const PartSpans& key_spans) {
  std::vector<size_t> parent(key_spans.spans().size());
  std::iota(parent.begin(), parent.end(), size_t{0});
  const auto root = [&](size_t i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
  };
  absl::flat_hash_map<int64_t, size_t> by_queries;
  for (size_t i = 0; i < parent.size(); ++i) {
    for (const AttentionPart& part : key_spans.spans()[i]) {
      const size_t other = by_queries.try_emplace(part.q_begin, i).first->second;
      parent[root(i)] = root(other);
    }
  }
  for (size_t i = 0; i < parent.size(); ++i) parent[i] = root(i);
  return parent;
}

std::vector<AttentionTask> QueryTasks(const PartSpans& spans, int64_t heads) {
  std::vector<AttentionTask> tasks;
  for (const absl::Span<const AttentionPart> parts : spans.spans()) {
    const int64_t length = parts.front().q_rows;
    for (int64_t first = 0; first < length; first += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, length - first);
      int64_t keys = 0;
      for (const AttentionPart& part : parts)
        keys += std::clamp<int64_t>(KeysBefore(part, first + rows), 0, part.k_rows);
      if (keys == 0) continue;
      for (int64_t head = 0; head < heads; ++head)
        tasks.push_back({parts, first, rows, head, static_cast<double>(rows) * static_cast<double>(keys)});
    }
  }
  LongestFirst(tasks);
  return tasks;
}

double CausalGemmFlops(absl::Span<const AttentionPart> parts, int64_t heads, int64_t head_size) {
  double pairs = 0;
  for (const AttentionPart& part : parts) {
    // Of queries that would see 1, 2, ..., `last` keys.
    const auto sum = [keys = static_cast<double>(part.k_rows)](int64_t last) {
      const double n = static_cast<double>(std::max<int64_t>(0, last)), rising = std::min(n, keys);
      return rising * (rising + 1) / 2 + (n - rising) * keys;
    };
    pairs += sum(KeysBefore(part, part.q_rows)) - sum(KeysBefore(part, 0));
  }
  return 2.0 * pairs * static_cast<double>(heads) * static_cast<double>(head_size);
}

}  // namespace shoal::cpu
