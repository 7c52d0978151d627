// Ops: free functions over Tensors, dispatched on device and dtype. Outputs are given by the caller and overwritten
// unless stated.
//
// Dtypes: f32, bf16 (fp32 arithmetic inside, round to nearest even on store) and f64 (gradient checks). All float
// tensors of one call have one dtype, except where stated; norms' statistics and losses are f32 (f64 when the inputs
// are f64). On kMeta every op only adds to ctx.cost. Tensors are contiguous unless stated. Wrong shapes or dtypes are
// programmer errors (CHECK). Results do not depend on the number of threads. Legend of shape suffixes: T tokens, D
// width, H heads, K kv heads, C head size, F ffn width, V vocabulary, M/N/K of a GEMM.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/base/rng.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/arena.h"
#include "runtime/tensor/tensor.h"

namespace shoal::ops {

enum class Transpose : uint8_t { kNo, kYes };
enum class Accumulate : uint8_t { kOverwrite, kAdd };

// out_MN (=|+=) op(a) op(b), fp32 accumulation. a is [M, K] (or [K, M] when transposed), b [K, N] (or [N, K]). All
// three may have a row stride (last dimension contiguous). `out` may be f32 while a and b are bf16 (weight gradients
// accumulate in fp32).
struct MatmulOptions {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  Accumulate accumulate = Accumulate::kOverwrite;
};
void Matmul(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out, MatmulOptions options = {});
// The same over a leading batch dimension: [B, M, K] x [B, K, N] -> [B, M, N].
void BatchedMatmul(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out, MatmulOptions options = {});

// y_TN = x_TK weight_NK^T (+ bias_N); weights are stored [out, in]. `bias` may be undefined. y (=|+=).
void LinearFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
               Accumulate accumulate = Accumulate::kOverwrite);
// bias gradient: out_N (=|+=) sum over rows of dy_TN; out is f32 (f64 for f64).
void ColumnSum(OpContext& ctx, const Tensor& dy, const Tensor& out, Accumulate accumulate);

// Variable-length causal attention over packed sequences (FlashAttention-2 tiling, arXiv 2307.08691): O(T) memory,
// deterministic backward. q_THC, k_TKC, v_TKC, out_THC may be row-strided views of one fused [T, (H + 2K) C] projection
// (last two dimensions contiguous inside a row). H is a multiple of K (GQA). lse_HT is f32: log-sum-exp of the scaled
// scores. Token i of a sequence sees tokens [0, i] of the same sequence.
struct AttentionOptions {
  float scale = 0;  // usually 1/sqrt(C); must be set
  // Where k and v are a run of the key heads of a model, and q of its query heads (heads spread over ranks): query
  // heads to a key head in the model, and the place of q's first head in its key head's group. 0: H / K.
  int64_t kv_group = 0, first_head = 0;
};
void AttentionVarlenFwd(OpContext& ctx, Arena& workspace, const Tensor& q, const Tensor& k, const Tensor& v,
                        absl::Span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse,
                        AttentionOptions options);
void AttentionVarlenBwd(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, absl::Span<const int32_t> cu_seqlens,
                        const Tensor& dq, const Tensor& dk, const Tensor& dv, AttentionOptions options);
// The same from delta_HT (AttentionDelta) in place of `out`.
void AttentionVarlenBwdDelta(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& delta, const Tensor& lse,
                             absl::Span<const int32_t> cu_seqlens, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                             AttentionOptions options);
// delta_HT = sum over C of dout_THC * out_THC, of lse's dtype: what backward needs of the output. Both may be
// row-strided; out is of dout's dtype, or f32.
void AttentionDelta(OpContext& ctx, const Tensor& dout, const Tensor& out, const Tensor& delta);

// Attention of parts of sequences (ring attention, arXiv 2310.01889): queries of rows [q_begin, q_begin + q_rows) of q
// and keys of rows [k_begin, k_begin + k_rows) of k and v, of one sequence. The first of each stands at position
// q_position, k_position of it; a query sees keys at its own position and before.
struct AttentionPart {
  int64_t q_begin = 0, q_rows = 0, q_position = 0;
  int64_t k_begin = 0, k_rows = 0, k_position = 0;
};
// Adds parts to a running result: out_THC (f32; f64 of f64) is the mean of values so far, normalised, and lse_HT the
// log-sum-exp so far; before the first part they are 0 and -infinity. Rows of q may be in several parts, which are
// taken in order, and in none; rows that see no key of any part stay as they are.
void AttentionPartsFwd(OpContext& ctx, Arena& workspace, const Tensor& q, const Tensor& k, const Tensor& v,
                       absl::Span<const AttentionPart> parts, const Tensor& out, const Tensor& lse,
                       AttentionOptions options);
// Adds the parts' gradients to dq_THC, dk_TKC, dv_TKC (f32; f64 of f64). delta and lse are of the whole result.
void AttentionPartsBwd(OpContext& ctx, Arena& workspace, const Tensor& dout, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& delta, const Tensor& lse, absl::Span<const AttentionPart> parts,
                       const Tensor& dq, const Tensor& dk, const Tensor& dv, AttentionOptions options);

// LayerNorm over the last dimension: y = (x - mean) * rstd * weight + bias. stats_T2 holds (mean, rstd) per row.
void LayerNormFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon,
                  const Tensor& y, const Tensor& stats);
// dx (=|+=); dweight and dbias accumulate (f32). `dx` may alias dy. Either of dx and the pair (dweight, dbias) may be
// undefined to skip it.
void LayerNormBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& stats,
                  const Tensor& dx, Accumulate accumulate_dx, const Tensor& dweight, const Tensor& dbias);
// RMSNorm: y = x * rstd * weight, rstd = 1/sqrt(mean(x^2) + epsilon); stats_T1. Rows may be any [R, C] view: QK-norm
// uses it with C = head size. x and y may be row-strided, and of shape [T, H, C] with weight_C.
void RmsNormFwd(OpContext& ctx, const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y,
                const Tensor& stats);
void RmsNormBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& stats,
                const Tensor& dx, Accumulate accumulate_dx, const Tensor& dweight);

// Rotary position embedding in place (arXiv 2104.09864) on x_THC (row-strided allowed), first half with second half of
// each head (the "rotate_half" convention of Hugging Face LLaMA). positions_T: i32. kBackward rotates by the negative
// angle.
enum class Direction : uint8_t { kForward, kBackward };
void Rope(OpContext& ctx, const Tensor& x, const Tensor& positions, float theta, Direction direction);

// GELU, tanh form of GPT-2: y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). y may alias x. dx may alias dy or x.
void GeluFwd(OpContext& ctx, const Tensor& x, const Tensor& y);
void GeluBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& dx);
// SwiGLU: y_TF = silu(gate) * up with gate_up_T2F = [gate | up] in each row. d_gate_up may alias gate_up.
void SwiGluFwd(OpContext& ctx, const Tensor& gate_up, const Tensor& y);
void SwiGluBwd(OpContext& ctx, const Tensor& dy, const Tensor& gate_up, const Tensor& d_gate_up);

// out_TD (=|+=) table_VD[tokens_T]; tokens: i32 in [0, V).
void EmbeddingFwd(OpContext& ctx, const Tensor& tokens, const Tensor& table, const Tensor& out, Accumulate accumulate);
// dtable_VD (f32) += rows of dout by token; deterministic: each row's contributions are added in token order.
void EmbeddingBwd(OpContext& ctx, const Tensor& tokens, const Tensor& dout, const Tensor& dtable);

// Fused linear + softmax cross-entropy in chunks of rows: logits never exist whole. loss_sum (f64 scalar, returned) is
// the sum over tokens with label >= 0 of -log softmax(hidden_TD weight_VD^T)[label]; labels_T: i32, -1 = ignored. When
// dhidden is defined the backward is done in the same pass: dhidden = grad_scale * dloss/dhidden (overwritten) and
// dweight (f32) (=|+=) grad_scale * dloss/dweight. Returns NaN on kMeta.
struct CrossEntropyOptions {
  float grad_scale = 1;
  float logit_scale = 1;      // logits, bias included, are multiplied by it
  float label_smoothing = 0;  // the target is 1 - s for the label and s / V more for every class (arXiv 1512.00567)
  int64_t* correct =
      nullptr;             // becomes the number of rows whose largest logit (of equal ones the first) is the label's
  int64_t chunk_rows = 0;  // 0: chosen so that a chunk of logits stays within a few MiB
  Accumulate accumulate_dweight = Accumulate::kAdd;
  Tensor bias = {};   // [V], of hidden's dtype; undefined: none
  Tensor dbias = {};  // f32; (=|+=) like dweight; wanted with bias in the backward
  Accumulate accumulate_dbias = Accumulate::kAdd;
};
double LinearCrossEntropy(OpContext& ctx, Arena& workspace, const Tensor& hidden, const Tensor& weight,
                          const Tensor& labels, const Tensor& dhidden, const Tensor& dweight,
                          const CrossEntropyOptions& options);

// Elementwise: out = a + b (out may alias either; all may be row-strided); out += scale * a with out f32 and a any
// float dtype; copies with conversion.
void Add(OpContext& ctx, const Tensor& a, const Tensor& b, const Tensor& out);
void AddScaled(OpContext& ctx, const Tensor& a, float scale, const Tensor& out);
void Copy(OpContext& ctx, const Tensor& from,
          const Tensor& to);  // dtypes may differ; equal sizes; either may be row-strided
// to (bf16) = from (f32), up or down with probabilities by distance, so that the mean is exact. Element i draws from
// (key, first_element + i): with the step as key.pass, a tensor's name and its global element, the same bits however it
// is cut.
void StochasticRound(OpContext& ctx, const Tensor& from, const RngKey& key, int64_t first_element, const Tensor& to);
void Fill(OpContext& ctx, const Tensor& x, float value);    // x may be row-strided
void Scale(OpContext& ctx, const Tensor& x, float factor);  // in place
// Dropout with the counter-based generator: y = keep ? x / (1 - rate) : 0, keep by Rng(key).Uniform(TokenCounter of row
// t, column). token_counters_T: i64. The same call on dy is the backward. y may alias x.
void Dropout(OpContext& ctx, const Tensor& x, float rate, const RngKey& key, const Tensor& token_counters,
             const Tensor& y);

// Reductions: sum of squares (blocked fp64 accumulation in fixed order), largest absolute value, and whether all are
// finite.
double SumOfSquares(OpContext& ctx, const Tensor& x);
double SumOfSquares(OpContext& ctx, absl::Span<const Tensor> xs);  // of all together; one dtype and device
double MaxAbs(OpContext& ctx, const Tensor& x);
bool AllFinite(OpContext& ctx, const Tensor& x);

}  // namespace shoal::ops
