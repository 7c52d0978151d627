#include "runtime/ops/cpu/conv_taps.h"

#include <vector>

#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/conv_plan.h"
#include "runtime/ops/cpu/scratch.h"

namespace shoal::cpu {
namespace {

using ops::Accumulate;
using ops::Direction;

// Columns of a task; depth and rows whose operands lie in the second-level cache together; rows that repay packing the
// weight again for them.
constexpr int64_t kColumns = kWidestPanel, kDepth = 512, kCachedRows = 96, kMostRows = 1024, kLeastRows = 192;

// A task's share: all rows in [begin, end) of all classes, for some columns of one group.
struct Task {
  int64_t group = 0, column = 0, columns = 0, begin = 0, end = 0;
};

// The weight's rows [k0, k1) of the packed depth, panel by panel.
class Packer {
 public:
  Packer(const ConvShape& s, const ConvPlan& plan, Direction direction, const float* weight)
      : s_(s), plan_(plan), direction_(direction), weight_(weight) {}

  void Pack(const Task& task, int64_t k0, int64_t k1, float* to) const {
    const auto& kernels = ConvKernels::Get();
    for (int64_t j = 0; j < task.columns; j += kernels.panel, to += (k1 - k0) * kernels.panel) {
      const int64_t columns = std::min(kernels.panel, task.columns - j);
      for (int64_t k = k0; k < k1;) {
        const int64_t channel = k % plan_.source_channels();
        const int64_t count = std::min(k1 - k, plan_.source_channels() - channel);
        PackTap(task, plan_.used_taps()[static_cast<size_t>(k / plan_.source_channels())], channel, count,
                task.column + j, columns, to + (k - k0) * kernels.panel);
        k += count;
      }
    }
  }

 private:
  void PackTap(const Task& task, int64_t tap, int64_t channel, int64_t count, int64_t column, int64_t columns,
               float* to) const {
    const auto& kernels = ConvKernels::Get();
    const int64_t row = s_.taps() * s_.group_c();  // of one output channel
    if (direction_ == Direction::kForward) {
      const float* from = weight_ + (task.group * s_.group_o() + column) * row + tap * s_.group_c() + channel;
      kernels.transpose(from, row, columns, count, to);
    } else {
      const float* from = weight_ + (task.group * s_.group_o() + channel) * row + tap * s_.group_c() + column;
      for (int64_t k = 0; k < count; ++k) {
        std::copy_n(from + k * row, columns, to + k * kernels.panel);
        std::fill(to + k * kernels.panel + columns, to + (k + 1) * kernels.panel, 0.0f);
      }
    }
  }

  const ConvShape& s_;
  const ConvPlan& plan_;
  Direction direction_;
  const float* weight_;
};

// The part of `runs` with packed depth in [k0, k1), counted from k0.
void Clip(const std::vector<ProductRun>& runs, int64_t k0, int64_t k1, std::vector<ProductRun>* clipped) {
  clipped->clear();
  for (const ProductRun& run : runs) {
    const int64_t begin = std::max(run.b, k0), end = std::min(run.b + run.length, k1);
    if (begin < end) clipped->push_back({run.a + begin - run.b, begin - k0, end - begin});
  }
}

void Compute(const ConvPlan& plan, const Packer& packer, const Task& task, const float* source, float* target) {
  const auto& kernels = ConvKernels::Get();
  float* packed = Scratch<float>(ScratchSlot::kTile0, kDepth * kColumns);
  auto* source_at = Scratch<int64_t>(ScratchSlot::kRow0, task.end - task.begin);
  auto* target_at = Scratch<int64_t>(ScratchSlot::kRow1, task.end - task.begin);
  const auto share = [&](const PixelClass& c) {
    return std::pair(std::clamp(task.begin, c.first, c.first + c.rows),
                     std::clamp(task.end, c.first, c.first + c.rows));
  };
  for (const PixelClass& c : plan.classes()) {
    const auto [begin, end] = share(c);
    plan.Locate(c, begin - c.first, end - c.first, source_at + begin - task.begin, target_at + begin - task.begin);
  }
  const float* from = source + task.group * plan.source_channels();
  float* to = target + task.group * plan.target_channels() + task.column;
  std::vector<ProductRun> runs;
  std::vector<uint8_t> begun(plan.classes().size());
  for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth(); k0 += kDepth) {
    const int64_t k1 = std::min(plan.depth(), k0 + kDepth);
    packer.Pack(task, k0, k1, packed);
    for (size_t i = 0; i < begun.size(); ++i) {
      const PixelClass& c = plan.classes()[i];
      const auto [first, last] = share(c);
      Clip(c.runs, k0, k1, &runs);
      // Without any tap the sum is zero.
      if (first == last || (runs.empty() && !c.runs.empty())) continue;
      for (int64_t row = first; row < last; row += kCachedRows) {
        const RowTable table{from, source_at + row - task.begin, to, target_at + row - task.begin,
                             std::min(kCachedRows, last - row)};
        for (int64_t j = 0; j < task.columns; j += kernels.panel) {
          RowTable panel = table;
          panel.out += j;
          kernels.rows(panel, runs, packed + j * (k1 - k0), std::min(kernels.panel, task.columns - j),
                       begun[i] ? Accumulate::kAdd : Accumulate::kOverwrite);
        }
      }
      begun[i] = true;
    }
  }
}

void Convolve(ThreadPool& pool, const ConvShape& s, Direction direction, const float* source, const float* weight,
              float* target) {
  const ConvPlan plan(s, direction);
  const Packer packer(s, plan, direction, weight);
  const int64_t blocks = (plan.target_channels() + kColumns - 1) / kColumns, rows = plan.rows();
  // Enough tasks for many threads while the rows of one repay its packing.
  constexpr int64_t kTasks = 32;
  const int64_t share = std::clamp(rows * blocks * s.groups / kTasks, kLeastRows, kMostRows);
  const int64_t pieces = (rows + share - 1) / share;
  pool.Run(s.groups * blocks * pieces, [&](int64_t i) {
    Task task;
    task.group = i / pieces / blocks;
    task.column = i / pieces % blocks * kColumns;
    task.columns = std::min(kColumns, plan.target_channels() - task.column);
    task.begin = rows * (i % pieces) / pieces;
    task.end = rows * (i % pieces + 1) / pieces;
    Compute(plan, packer, task, source, target);
  });
}

}  // namespace

void TapsFwd(ThreadPool& pool, const ConvShape& s, const float* x, const float* weight, float* y) {
  Convolve(pool, s, Direction::kForward, x, weight, y);
}

void TapsBwdInput(ThreadPool& pool, const ConvShape& s, const float* dy, const float* weight, float* dx) {
  Convolve(pool, s, Direction::kBackward, dy, weight, dx);
}

}  // namespace shoal::cpu
