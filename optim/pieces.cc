#include "optim/pieces.h"

#include <algorithm>

#include "runtime/base/rng.h"
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

}  // namespace

void ForPieceRuns(ThreadPool& pool, absl::Span<OptimizerPiece> pieces,
                  absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t)> fn) {
  const std::vector<Task> tasks = TasksOf(pieces);
  pool.Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[i];
    for (int64_t at = task.begin; at < task.end; at += kRunElements)
      fn(*task.piece, at, std::min(kRunElements, task.end - at));
  });
}

std::vector<double> SumByParam(ThreadPool& pool, absl::Span<OptimizerPiece> pieces, size_t params, size_t width,
                               absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, double*)> fn) {
  const std::vector<Task> tasks = TasksOf(pieces);
  std::vector<double> partial(tasks.size() * width);
  pool.Run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[i];
    for (int64_t at = task.begin; at < task.end; at += kRunElements)
      fn(*task.piece, at, std::min(kRunElements, task.end - at), &partial[i * width]);
  });
  std::vector<double> sums(params * width);
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (size_t w = 0; w < width; ++w) sums[tasks[i].piece->param->id * width + w] += partial[i * width + w];
  }
  return sums;
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
