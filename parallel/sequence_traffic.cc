#include "parallel/sequence_traffic.h"

#include <algorithm>

namespace shoal {

SequenceTraffic TrafficOf(const AttentionHeads& heads, SequenceSpread spread, double element) {
  const double u = spread.ulysses, r = spread.ring, gradient = std::max(4.0, element);
  double key_heads = 0;
  for (int i = 0; i < spread.ulysses; ++i) key_heads += static_cast<double>(ShareOfHeads(heads, spread.ulysses, i).k());
  const auto size = static_cast<double>(heads.size);
  SequenceTraffic traffic;
  if (u > 1) traffic.all_to_all = 2 * (2.0 * static_cast<double>(heads.heads) + 2 * key_heads) * size * element;
  if (r > 1) traffic.ring = 2 * key_heads * size * (2 * (r - 1) * element + r * gradient);
  traffic.sent = traffic.all_to_all * (u - 1) / u + traffic.ring;
  return traffic;
}

double ExchangesInTurn(const AttentionHeads& heads, SequenceSpread spread, int64_t rows, double element) {
  constexpr double kAllToAlls = 5;  // q, k and v; the result; its gradient and delta; gradients of q, k and v
  const double all_to_alls = spread.ulysses > 1 ? kAllToAlls : 0;
  if (spread.ring == 1) return all_to_alls;
  const double head = 2.0 * static_cast<double>(rows * spread.ulysses * heads.size) * element;
  const auto [slabs, shares] =
      SequenceShard::RingChunks().Cut(ShareOfHeads(heads, spread.ulysses, 0).k(), static_cast<int64_t>(head));
  return all_to_alls + static_cast<double>(slabs * shares) * (2.0 * spread.ring - 1);
}

}  // namespace shoal
