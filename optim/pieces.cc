#include "optim/pieces.h"

#include <algorithm>

#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/ops/cpu/row_kernels.h"

namespace shoal {
namespace {

// Elements of a task: enough to be worth a hand-over to another thread.
constexpr int64_t kTaskElements = 1 << 16;

struct Task {
  OptimizerPiece* piece;
  int64_t begin, end;
};

std::vector<Task> TasksOf(absl::Span<OptimizerPiece> pieces) {
  std::vector<Task> tasks;
  for (OptimizerPiece& piece : pieces) {
    const int64_t n = piece.end - piece.begin;
    for (int64_t begin = 0; begin < n; begin += kTaskElements)
      tasks.push_back({&piece, begin, std::min(n, begin + kTaskElements)});
  }
  return tasks;
}

constexpr size_t kSums = 2;  // of a tensor

// Elements whose weights, gradients and moments together stay in a last-level cache of some 16 MiB.
constexpr int64_t kCachedElements = 1 << 20;

bool IsWhole(const OptimizerPiece& piece) { return piece.begin == 0 && piece.end == piece.param->size(); }

// Adds what `norms` finds in `pieces` to the sums of their parameters.
void AddSums(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
             absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, double*)> norms, std::vector<double>& sums) {
  const std::vector<Task> tasks = TasksOf(pieces);
  std::vector<double> partial(tasks.size() * kSums);
  pool.Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    norms(*tasks[i].piece, tasks[i].begin, tasks[i].end - tasks[i].begin, &partial[i * kSums]);
  });
  for (size_t i = 0; i < partial.size(); ++i) sums[tasks[i / kSums].piece->param->id * kSums + i % kSums] += partial[i];
}

}  // namespace

void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t)> fn) {
  const std::vector<Task> tasks = TasksOf(pieces);
  pool.Run(static_cast<int64_t>(tasks.size()),
           [&](int64_t i) { fn(*tasks[i].piece, tasks[i].begin, tasks[i].end - tasks[i].begin); });
}

void ForBlocks(DType moment_type, int64_t begin, int64_t count, absl::FunctionRef<void(int64_t, int64_t)> fn) {
  const int64_t block = moment_type == DType::kF32 ? count : kBlockElements;
  for (int64_t at = 0; at < count; at += block) fn(begin + at, std::min(block, count - at));
}

absl::Status TwoPasses(const OptimizerEnv& env, absl::Span<OptimizerPiece> pieces, size_t params,
                       absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, double*)> norms,
                       absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, const double*)> apply) {
  std::vector<double> sums(params * kSums);  // by Param::id
  const auto apply_all = [&](absl::Span<OptimizerPiece> some) {
    ForPieceRuns(env.pool, some, [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
      apply(piece, begin, n, &sums[piece.param->id * kSums]);
    });
  };
  std::vector<OptimizerPiece> cut;  // handles of the same memory
  for (size_t first = 0; first < pieces.size();) {
    if (!IsWhole(pieces[first])) {
      cut.push_back(pieces[first++]);
      continue;
    }
    size_t last = first;
    for (int64_t n = 0; last < pieces.size() && IsWhole(pieces[last]); ++last) {
      n += pieces[last].param->size();
      if (n > kCachedElements && last > first) break;
    }
    const absl::Span<OptimizerPiece> batch = pieces.subspan(first, last - first);
    AddSums(env.pool, batch, norms, sums);
    apply_all(batch);
    first = last;
  }
  AddSums(env.pool, absl::MakeSpan(cut), norms, sums);
  SHOAL_RETURN_IF_ERROR(env.owners.Sum(absl::MakeSpan(sums)));
  apply_all(absl::MakeSpan(cut));
  return absl::OkStatus();
}

MomentRun::MomentRun(OptimizerPiece& piece, size_t which, int64_t begin, int64_t count)
    : piece_(piece), which_(which), begin_(begin), count_(count), values_(widened_) {
  const Tensor& state = piece.state[which];
  if (state.dtype() == DType::kF32)
    values_ = state.data<float>() + begin;
  else
    cpu::ToFloat(state.data<BFloat16>() + begin, count, widened_);
}

void MomentRun::Store(const OptimizerStep& step) {
  if (values_ != widened_) return;
  // An odd multiple keeps the moments of one parameter apart.
  const uint64_t name = NameHash(piece_.param->name) + which_ * 0x9E3779B97F4A7C15u;
  const Rng rng({step.seed, RngPurpose::kStochasticRounding, name, static_cast<uint32_t>(step.step)});
  BFloat16* stored = piece_.state[which_].data<BFloat16>() + begin_;
  cpu::StochasticRoundRow(widened_, count_, rng.key()[0], rng.key()[1], static_cast<uint64_t>(piece_.begin + begin_),
                          stored);
  cpu::ToFloat(stored, count_, widened_);
}

}  // namespace shoal
