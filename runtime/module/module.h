// Module: a layer with a hand-written Forward and Backward over a LIFO frame stack. Combinators compose modules
// (combinators.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "runtime/module/param.h"
#include "runtime/module/step_context.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

struct SequenceShard;  // parallel/sequence_shard.h

// What belongs to the rows of a batch: tokens of packed sequences (T rows), or images (N rows). Shared by all layers of
// a micro-batch.
struct SeqLayout {
  // n + 1 offsets, first 0, last T; empty for images. Of a shard: of this rank's runs of sequences.
  std::vector<int32_t> cu_seqlens;
  Tensor positions;       // i32 [T]: position in the document's sequence (RoPE, learned positions)
  Tensor labels;          // i32 [T] already shifted, or [N]; -1 = ignored; undefined: only logits are wanted
  Tensor token_counters;  // i64 [T] or [N]: TokenCounter(global sample position, token or 0), for dropout
  int32_t max_len = 0;
  std::shared_ptr<const SequenceShard> shard = nullptr;  // null: rows are whole sequences, and no other rank has any
  int64_t tokens() const { return cu_seqlens.empty() ? 0 : cu_seqlens.back(); }
};

// What flows between modules: token rows [T, D] (or token ids i32 [T] at the bottom of a language model), or images [N,
// H, W, C].
struct Batch {
  Tensor x;
  std::shared_ptr<const SeqLayout> layout;
};

class Module {
 public:
  virtual ~Module() = default;

  // Pushes its frames (ctx.Push / ctx.Frame) and returns the output, which lives on the frame stack: the next module
  // may keep it without a copy. Reads weights only through ctx.Weight, and keeps no pointer to weight or gradient
  // between calls.
  virtual Batch Forward(StepContext& ctx, Batch x) = 0;

  // Pops exactly the frames that the matching Forward pushed. `dy` is only read; the returned dx is a live value of the
  // caller's (undefined x when the input takes no gradient, as token ids do). Backward does not read the module's own
  // output, so that a combinator may change it in place. Weight gradients go through ctx.WeightGrad.
  virtual Batch Backward(StepContext& ctx, Batch dy) = 0;

  // All parameters in definition order, which is the order of first use in Forward.
  virtual void VisitParams(absl::FunctionRef<void(Param&)> visit) = 0;
  // All buffers, each once, in definition order.
  virtual void VisitBuffers(absl::FunctionRef<void(Buffer&)> /*visit*/) {}
};

// Numbers the parameters (id, uses) of a model in visiting order and returns them. A Param visited twice (shared by two
// modules) keeps one id and counts two uses. CHECK-fails on two different Params of one name.
std::vector<Param*> AssignIds(Module& model);

}  // namespace shoal
