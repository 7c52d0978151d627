// Naive float64 versions of every op, written from the formulas: what the op table compares the kernels with.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/base/rng.h"

namespace shoal::reference {

using Values = std::vector<double>;

// [m, k] x [k, n]; `a` as stored: [k, m] when transpose_a, `b` [n, k] when transpose_b.
Values Matmul(const Values& a, const Values& b, int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b);
Values ColumnSum(const Values& x, int64_t rows, int64_t columns);

struct AttentionShape {
  std::vector<int32_t> cu_seqlens;
  int64_t heads = 1, key_heads = 1, size = 1;
  double scale = 1;
  int64_t kv_group = 0, first_head = 0;  // as ops::AttentionOptions has them
};
struct AttentionOut {
  Values out, lse;  // [T, H, C], [H, T]
};
AttentionOut Attention(const AttentionShape& shape, const Values& q, const Values& k, const Values& v);
struct AttentionGrads {
  Values dq, dk, dv;
};
AttentionGrads AttentionBackward(const AttentionShape& shape, const Values& dout, const Values& q, const Values& k,
                                 const Values& v);

Values LayerNorm(const Values& x, const Values& weight, const Values& bias, double epsilon);
Values RmsNorm(const Values& x, const Values& weight, double epsilon);
struct NormGrads {
  Values dx, dweight, dbias;
};
NormGrads LayerNormBackward(const Values& dy, const Values& x, const Values& weight, double epsilon);
NormGrads RmsNormBackward(const Values& dy, const Values& x, const Values& weight, double epsilon);

// x [T, H, C], one position per token; sign -1 for the backward.
Values Rope(const Values& x, const std::vector<int32_t>& positions, int64_t heads, int64_t size, double theta,
            double sign);

Values Gelu(const Values& x);
Values GeluBackward(const Values& dy, const Values& x);
Values SwiGlu(const Values& gate_up, int64_t ffn);
Values SwiGluBackward(const Values& dy, const Values& gate_up, int64_t ffn);

Values Embedding(const std::vector<int32_t>& tokens, const Values& table, int64_t width);
Values EmbeddingBackward(const std::vector<int32_t>& tokens, const Values& dout, int64_t vocabulary, int64_t width);

struct CrossEntropyOut {
  double loss = 0;
  Values dhidden, dweight;
  int64_t correct = 0;
};
CrossEntropyOut LinearCrossEntropy(const Values& hidden, const Values& weight, const std::vector<int32_t>& labels,
                                   int64_t width, double grad_scale, double label_smoothing = 0);

}  // namespace shoal::reference
