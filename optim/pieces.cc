#include "optim/pieces.h"

#include <algorithm>

namespace shoal {

void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t)> fn) {
  constexpr int64_t kRun = 1 << 16;
  struct Task {
    OptimizerPiece* piece;
    int64_t begin, count;
  };
  std::vector<Task> tasks;
  for (OptimizerPiece& piece : pieces) {
    const int64_t n = piece.end - piece.begin;
    for (int64_t begin = 0; begin < n; begin += kRun) tasks.push_back({&piece, begin, std::min(kRun, n - begin)});
  }
  pool.Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { fn(*tasks[i].piece, tasks[i].begin, tasks[i].count); });
}

}  // namespace shoal
