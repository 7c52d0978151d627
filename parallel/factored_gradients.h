// FactoredGradients: gradients of matrices that travel as PowerSGD's two factors (comm/codec/power_sgd.h), with warm
// start.
//
// A parameter of shape [a, b, ...] is the matrix [a, b * ...]. The first factors of a bucket's matrices start on their
// way together as soon as its gradients are there, beside backward; the second factors of all follow in Finish. All
// ranks hold the same factors, bit by bit.
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

  // From the next step on. What a change of rank leaves of the factor is kept.
  void SetRank(const Param& param, int rank);

  // Before the first Start of a step: second factors of one that was not taken are forgotten, also those of matrices
  // that travel as bytes this time.
  void BeginStep();
  // One bucket's. What `input` points to (gradient, residual, left: the next residual, may be null) stays as it is
  // until Finish.
  struct Input {
    const Param* param = nullptr;
    CodecInput input;
  };
  void Start(absl::Span<const Input> inputs);
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
  // The step is taken: its second factors start the next step's.
  void Commit();

  // What this rank's matrices of the last step were, and what their factors left of them; 0 without feedback.
  const RunErrors& errors() const { return errors_; }

  // Factors as "<name>/factor".
  void VisitState(StateVisitor& visitor);
  int64_t bytes() const;

 private:
  struct Matrix {
    const Param* param = nullptr;
    PowerSgdShape shape;
    Tensor q, p, next;  // [columns, rank], [rows, rank], [columns, rank]; p and next are parts of what travels together
    CodecInput input;
    WorkPtr work;  // of all first factors that travel with its own
    enum class Next : uint8_t { kNone, kThere } has_next = Next::kNone;
  };
  absl::Status FinishFactors();
  void Draw(Matrix& matrix, int from_column) const;

  Communicator& comm_;
  const uint64_t seed_;
  std::map<int, Matrix> matrices_;  // by Param::id
  std::vector<Matrix*> started_;    // of this step, in order
  RunErrors errors_;
};

}  // namespace shoal
