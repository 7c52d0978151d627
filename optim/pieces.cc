#include "optim/pieces.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

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
// Elements of a task of TwoPasses: short, as the second pass waits for the last of the first.
constexpr int64_t kPassElements = 1 << 14;

using Norms = absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, double*)>;
using Apply = absl::FunctionRef<void(OptimizerPiece&, int64_t, int64_t, const double*)>;

// Both passes over pieces, shared out among threads. Updates of a whole tensor come next as soon as its sums are known,
// and from its end, so that they find in the caches what the first pass left there. A thread does not wait for others
// to finish a tensor's sums while there are later tensors.
class PassQueue {
 public:
  explicit PassQueue(absl::Span<OptimizerPiece> pieces) {
    for (OptimizerPiece& piece : pieces) {
      const size_t first = tasks_.size();
      for (int64_t begin = 0; begin < piece.end - piece.begin; begin += kPassElements)
        tasks_.push_back({begin, std::min(kPassElements, piece.end - piece.begin - begin), parts_.size(), {}});
      if (tasks_.size() > first) parts_.push_back({&piece, first, tasks_.size(), tasks_.size() - first, {}});
    }
    unknown_ = parts_.size();
  }

  struct Part {
    OptimizerPiece* piece;
    size_t first, last;  // its tasks
    size_t left;         // of them in the first pass
    double sums[kSums];
    bool whole() const { return piece->begin == 0 && piece->end == piece->param->size(); }
  };
  absl::Span<const Part> parts() const { return parts_; }

  // Until nothing is left that can be started; on every thread.
  void Work(Norms norms, Apply apply) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      if (!updates_.empty()) {
        const Task task = tasks_[updates_.back()];
        updates_.pop_back();
        lock.unlock();
        apply(*parts_[task.part].piece, task.begin, task.count, parts_[task.part].sums);
        lock.lock();
      } else if (next_ < tasks_.size()) {
        Task& task = tasks_[next_++];
        lock.unlock();
        norms(*parts_[task.part].piece, task.begin, task.count, task.sums);
        lock.lock();
        if (--parts_[task.part].left == 0) Finish(parts_[task.part]);
      } else if (unknown_ > 0) {
        changed_.wait(lock);
      } else {
        return;
      }
    }
  }

 private:
  struct Task {
    int64_t begin, count;
    size_t part;
    double sums[kSums];
  };

  void Finish(Part& part) {
    for (size_t t = part.first; t < part.last; ++t) {
      for (size_t s = 0; s < kSums; ++s) part.sums[s] += tasks_[t].sums[s];
      if (part.whole()) updates_.push_back(t);
    }
    --unknown_;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Part> parts_;
  std::vector<Task> tasks_;
  size_t next_ = 0;              // task of the first pass
  size_t unknown_ = 0;           // parts whose sums are not known yet
  std::vector<size_t> updates_;  // tasks of the second pass that can start, taken from the back
};

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

absl::Status TwoPasses(const OptimizerEnv& env, absl::Span<OptimizerPiece> pieces, size_t params, Norms norms,
                       Apply apply) {
  PassQueue queue(pieces);
  env.pool.Run(env.pool.threads(), [&](int64_t) { queue.Work(norms, apply); });

  std::vector<double> sums(params * kSums);  // of cut tensors, by Param::id
  std::vector<OptimizerPiece> cut;           // handles of the same memory
  for (const PassQueue::Part& part : queue.parts()) {
    if (part.whole()) continue;
    cut.push_back(*part.piece);
    for (size_t s = 0; s < kSums; ++s) sums[part.piece->param->id * kSums + s] += part.sums[s];
  }
  SHOAL_RETURN_IF_ERROR(env.owners.Sum(absl::MakeSpan(sums)));
  ForPieceRuns(env.pool, absl::MakeSpan(cut), [&](OptimizerPiece& piece, int64_t begin, int64_t n) {
    apply(piece, begin, n, &sums[piece.param->id * kSums]);
  });
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
