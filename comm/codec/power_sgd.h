// PowerSGD (Vogels et al., arXiv 1905.13727): a gradient matrix is exchanged as two thin factors, P = M Q and Q = M^T
// P.
//
// Linear: both factors are summed over ranks by plain all-reduces, so there is no byte code and no owner. One round:
//   P_w = M_w Q  ->  all-reduce sum P  ->  orthonormalise P  ->  Q_w = M_w^T P  ->  all-reduce sum Q  ->  out = P Q^T
// with M_w = gradient + residual_scale * residual. The residual is the rank's own: M_w - P (P^T M_w) = M_w - P Q_w^T
// (the averaged form drifts with sqrt(t): research/lgreco.md §0.5). Q of one round starts the next (warm start).
// All functions are pure and give the same bits on every dispatch target. Matrices are row-major, M is [rows, columns];
// of a CodecInput they read gradient, residual and residual_scale. NaN and infinities come out as NaN or infinities.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "comm/codec/codec.h"

namespace shoal {

struct PowerSgdShape {
  int64_t rows = 0, columns = 0;
  int rank = 1;  // <= min(rows, columns)
};

// Q [columns, rank]: columns [from_column, rank) become independent standard normals drawn from (seed, tensor, plan,
// column, element); those before stay as they are, so that a warm start survives a change of rank. A column of zeros
// before from_column is drawn too: what a gradient of zeros leaves behind would else stay zero for good, so call this
// before every round. Q needs no orthonormal columns.
void PowerSgdStart(const PowerSgdShape& shape, uint64_t seed, uint64_t tensor, uint32_t plan, int from_column,
                   float* q);

// P [rows, rank] = M Q.
void PowerSgdProject(const PowerSgdShape& shape, const CodecInput& input, const float* q, float* p);
// Columns of a [rows, rank] matrix become orthonormal (modified Gram-Schmidt in double). A column that depends on those
// before it but for a millionth of its length, or is zero, becomes zero.
void Orthonormalise(int64_t rows, int rank, float* p);
// Q_w [columns, rank] = M^T P.
void PowerSgdBackProject(const PowerSgdShape& shape, const CodecInput& input, const float* p, float* q);
// input.left = M - P Q_w^T with this rank's own Q_w, before it is summed. Returns squares of M and of what is left;
// finite: all of M and of what is left is, so that a NaN from another rank shows as well.
Encoded PowerSgdResidual(const PowerSgdShape& shape, const CodecInput& input, const float* p, const float* q);
// out = P Q^T, of the summed Q.
void PowerSgdReconstruct(const PowerSgdShape& shape, const float* p, const float* q, float* out);

// Squared errors of ranks[i] (ascending) for all i from one randomised SVD of a few more than ranks.back() columns
// (Halko et al. §4.4 with one power iteration): ||M||_F^2 minus the squares of the first ranks[i] singular values, good
// to a millionth of ||M||_F^2. Returns ||M||_F^2; all are NaN where an element is not finite.
double PowerSgdErrors(int64_t rows, int64_t columns, const CodecInput& input, absl::Span<const int> ranks,
                      absl::Span<double> errors);

}  // namespace shoal
