// FactoredGradients: gradients of matrices that travel as PowerSGD's two factors (comm/codec/power_sgd.h), with warm
// start, each factor in an all-reduce of its own.
//
// A parameter of shape [a, b, ...] is the matrix [a, b * ...]. The first factor of a matrix starts on its way as soon as
// its gradient is there, beside backward; the second follows in Finish. All ranks hold the same factors, bit by bit.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "comm/codec/power_sgd.h"
#include "comm/communicator.h"
#include "parallel/state.h"
#include "runtime/module/param.h"

namespace shoal {

// f32 bytes of both factors.
int64_t FactorBytes(const Param& param, int rank);
// The largest rank a parameter can take: the lesser side of its matrix; 0 for vectors.
int64_t MostRank(const Param& param);

class FactoredGradients {
 public:
  // `comm` outlives it, and is used in the order of calls, which are the same on all ranks.
  FactoredGradients(Communicator& comm, uint64_t seed) : comm_(comm), seed_(seed) {}

  // From the next step on; 0: travels otherwise. What a change of rank leaves of the factor is kept.
  void SetRank(const Param& param, int rank);
  bool empty() const { return matrices_.empty(); }

  // `input` (gradient, residual, residual_scale, left: the next residual, may be null) stays as it is until Finish.
  void Start(const Param& param, const CodecInput& input);
  // Second factors, residuals, and the sums over ranks: out(param) is where a whole sum goes, null for a rank that has
  // no part in it. Communication errors.
  template <class F>
  absl::Status Finish(F out) {
    if (const absl::Status status = FinishFactors(); !status.ok()) return status;
    for (Matrix* matrix : started_) {
      if (float* const to = out(*matrix->param); to != nullptr)
        PowerSgdReconstruct(matrix->shape, matrix->p.data<float>(), matrix->next.data<float>(), to);
    }
    started_.clear();
    return absl::OkStatus();
  }
  // The step is taken: its second factors start the next step's. Without it they are forgotten.
  void Commit();

  // Factors as "<name>/factor".
  void VisitState(StateVisitor& visitor);
  int64_t bytes() const;

 private:
  struct Matrix {
    const Param* param = nullptr;
    PowerSgdShape shape;
    Tensor q, p, next;  // [columns, rank], [rows, rank], [columns, rank]
    CodecInput input;
    WorkPtr work;
    enum class Next : uint8_t { kNone, kThere } has_next = Next::kNone;
  };
  absl::Status FinishFactors();
  void Draw(Matrix& matrix, int from_column) const;

  Communicator& comm_;
  const uint64_t seed_;
  std::map<int, Matrix> matrices_;  // by Param::id
  std::vector<Matrix*> started_;    // of this step, in order
};

}  // namespace shoal
