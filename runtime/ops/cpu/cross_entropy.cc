// Linear layer + softmax cross-entropy, forward and backward in one pass over chunks of rows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/ops/cpu/typed.h"
#include "runtime/ops/ops.h"

namespace shoal::ops {
namespace {

using cpu::Arithmetic;

int64_t ChunkRows(int64_t rows, int64_t vocabulary, int64_t wanted) {
  // Every chunk reads and writes the whole weight gradient, so a chunk must be worth that; 8 MiB of logits otherwise.
  constexpr int64_t kLeast = 256, kBytes = 8 << 20;
  const int64_t chosen = wanted > 0 ? wanted : std::max(kLeast, kBytes / 4 / std::max<int64_t>(1, vocabulary));
  return std::max<int64_t>(1, std::min(rows, chosen));
}

struct RowsOutcome {
  std::vector<double> losses;
  std::vector<uint8_t> correct;
};

// Rows of products (plus the bias, times logit_scale) become grad_scale * logit_scale * (softmax - target); returns the
// rows' losses and which labels had the largest logit.
template <class A>
void SoftmaxRows(OpContext& ctx, const Tensor& logits, const A* bias, const int32_t* labels,
                 const CrossEntropyOptions& options, RowsOutcome& outcome) {
  const int64_t rows = logits.dim(0), v = logits.dim(1);
  const A logit_scale = options.logit_scale, grad_scale = options.grad_scale * logit_scale;
  const double smoothing = options.label_smoothing, each = smoothing / static_cast<double>(v);
  outcome.losses.assign(rows, 0.0);
  outcome.correct.assign(rows, 0);
  ctx.pool->ParallelFor(rows, cpu::RowGrain(v), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      A* row = logits.data<A>() + r * v;
      const int32_t label = labels[r];
      if (label < 0) {
        std::fill_n(row, v, A(0));
        continue;
      }
      CHECK_LT(label, v) << "label beyond the vocabulary";
      if (bias != nullptr) cpu::AddRow(row, bias, v, row);
      if (logit_scale != 1) cpu::ScaleRow(row, v, logit_scale);
      const A highest = cpu::MaxRow(row, v);
      const A picked = row[label];
      outcome.correct[r] = picked == highest && std::find(row, row + label, highest) == row + label;
      double wanted = static_cast<double>(picked);  // the logit that the target expects
      if (smoothing > 0) wanted = (1 - smoothing) * wanted + each * cpu::SumRow(row, v);
      const A total = cpu::ExpRow(row, v, highest);
      outcome.losses[r] = std::log(static_cast<double>(total)) + static_cast<double>(highest) - wanted;
      cpu::ScaleRow(row, v, grad_scale / total);
      if (smoothing > 0) cpu::ShiftRow(row, v, static_cast<A>(-each) * grad_scale);
      row[label] -= static_cast<A>(1 - smoothing) * grad_scale;
    }
  });
}

}  // namespace

double LinearCrossEntropy(OpContext& ctx, Arena& workspace, const Tensor& hidden, const Tensor& weight,
                          const Tensor& labels, const Tensor& dhidden, const Tensor& dweight,
                          const CrossEntropyOptions& options) {
  const int64_t rows = hidden.dim(0), v = weight.dim(0);
  CHECK_EQ(hidden.dim(1), weight.dim(1)) << "hidden " << ShapeString(hidden.shape()) << ", weight "
                                         << ShapeString(weight.shape());
  const bool backward = dhidden.defined();
  CHECK_EQ(backward, dweight.defined()) << "dhidden and dweight are wanted together";
  const DType wide = hidden.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
  const int64_t chunk = ChunkRows(rows, v, options.chunk_rows);
  const bool meta = hidden.meta();
  CHECK(!backward || options.bias.defined() == options.dbias.defined()) << "bias and dbias are given together";
  if (backward && rows == 0 && options.accumulate_dweight == Accumulate::kOverwrite) Fill(ctx, dweight, 0);
  if (options.dbias.defined() && rows == 0 && options.accumulate_dbias == Accumulate::kOverwrite)
    Fill(ctx, options.dbias, 0);
  Tensor bias = options.bias;
  if (bias.defined() && bias.dtype() != wide) {
    bias = workspace.Live({v}, wide);
    Copy(ctx, options.bias, bias);
  }

  CHECK(options.label_smoothing >= 0 && options.label_smoothing < 1)
      << "label smoothing " << options.label_smoothing << "; it lies in [0, 1)";
  double loss = 0;
  int64_t correct = 0;
  RowsOutcome outcome;
  Tensor logits_chunk = workspace.Live({chunk, v}, wide), narrow_chunk;
  if (backward && hidden.dtype() == DType::kBF16) narrow_chunk = workspace.Live({chunk, v}, DType::kBF16);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(rows, begin + chunk);
    const Tensor logits = logits_chunk.Rows(0, end - begin), h = hidden.Rows(begin, end);
    Matmul(ctx, h, weight, logits, {.transpose_b = Transpose::kYes});
    {
      const cpu::OpScope scope(ctx, logits, 3.0 * static_cast<double>(logits.bytes()), "SoftmaxCrossEntropy");
      const auto rows_of = [&](auto arithmetic) {
        using A = decltype(arithmetic);
        SoftmaxRows<A>(ctx, logits, bias.defined() ? bias.data<A>() : nullptr, labels.data<int32_t>() + begin, options,
                       outcome);
      };
      if (!scope.counted()) wide == DType::kF64 ? rows_of(double{}) : rows_of(float{});
      for (const double row : outcome.losses) loss += row;
      for (const uint8_t row : outcome.correct) correct += row;
    }
    if (!backward) continue;
    if (options.dbias.defined())
      ColumnSum(ctx, logits, options.dbias, begin == 0 ? options.accumulate_dbias : Accumulate::kAdd);
    Tensor dlogits = logits;
    if (narrow_chunk.defined()) {
      dlogits = narrow_chunk.Rows(0, end - begin);
      Copy(ctx, logits, dlogits);
    }
    Matmul(ctx, dlogits, weight, dhidden.Rows(begin, end));
    Matmul(ctx, dlogits, h, dweight,
           {.transpose_a = Transpose::kYes, .accumulate = begin == 0 ? options.accumulate_dweight : Accumulate::kAdd});
  }
  if (options.correct != nullptr) *options.correct = correct;
  return meta ? std::numeric_limits<double>::quiet_NaN() : loss;
}

}  // namespace shoal::ops
