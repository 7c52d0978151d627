#include "parallel/factored_gradients.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

int64_t Rows(const Param& param) { return param.shape.empty() ? 1 : param.shape[0]; }
int64_t Columns(const Param& param) { return param.size() / std::max<int64_t>(1, Rows(param)); }

}  // namespace

int64_t FactorBytes(const Param& param, int rank) {
  return rank * (Rows(param) + Columns(param)) * static_cast<int64_t>(sizeof(float));
}

int64_t MostRank(const Param& param) {
  return param.shape.size() < 2 ? 0 : std::min(Rows(param), Columns(param));
}

void FactoredGradients::Draw(Matrix& matrix, int from_column) const {
  PowerSgdStart(matrix.shape, seed_, NameHash(matrix.param->name), 0, from_column, matrix.q.data<float>());
}

void FactoredGradients::SetRank(const Param& param, int rank) {
  if (rank == 0) {
    matrices_.erase(param.id);
    return;
  }
  Matrix& matrix = matrices_[param.id];
  const int before = matrix.param == nullptr ? 0 : matrix.shape.rank;
  if (before == rank) return;
  const Tensor old = matrix.q;
  matrix = Matrix();
  matrix.param = &param;
  matrix.shape = {Rows(param), Columns(param), rank};
  matrix.q = Tensor::Zeros({matrix.shape.columns, rank}, DType::kF32);
  matrix.p = Tensor::Zeros({matrix.shape.rows, rank}, DType::kF32);
  matrix.next = Tensor::Zeros({matrix.shape.columns, rank}, DType::kF32);
  const int kept = std::min(before, rank);
  for (int64_t row = 0; row < matrix.shape.columns && kept > 0; ++row)
    std::copy_n(old.data<float>() + row * before, kept, matrix.q.data<float>() + row * rank);
  Draw(matrix, kept);
}

void FactoredGradients::Start(const Param& param, const CodecInput& input) {
  Matrix& matrix = matrices_.at(param.id);
  Draw(matrix, matrix.shape.rank);  // columns that went to zero
  matrix.input = input;
  PowerSgdProject(matrix.shape, input, matrix.q.data<float>(), matrix.p.data<float>());
  matrix.work = comm_.AllReduce(matrix.p, ReduceOp::kSum, {.tag = absl::StrCat("first factor of ", param.name)});
  started_.push_back(&matrix);
}

absl::Status FactoredGradients::FinishFactors() {
  for (Matrix* m : started_) {
    SHOAL_RETURN_IF_ERROR(m->work->Wait());
    Orthonormalise(m->shape.rows, m->shape.rank, m->p.data<float>());
    PowerSgdBackProject(m->shape, m->input, m->p.data<float>(), m->next.data<float>());
    // Before it is summed: the rank's own.
    if (m->input.left != nullptr) PowerSgdResidual(m->shape, m->input, m->p.data<float>(), m->next.data<float>());
    m->work = comm_.AllReduce(m->next, ReduceOp::kSum, {.tag = absl::StrCat("second factor of ", m->param->name)});
  }
  for (Matrix* m : started_) {
    SHOAL_RETURN_IF_ERROR(m->work->Wait());
    m->work = nullptr;
    m->has_next = Matrix::Next::kThere;
  }
  return absl::OkStatus();
}

void FactoredGradients::Commit() {
  for (auto& [id, matrix] : matrices_) {
    if (matrix.has_next == Matrix::Next::kThere) std::swap(matrix.q, matrix.next);
    matrix.has_next = Matrix::Next::kNone;
  }
}

void FactoredGradients::VisitState(StateVisitor& visitor) {
  for (auto& [id, matrix] : matrices_) {
    const std::string name = matrix.param->name + "/factor", rank_name = name + ".rank";
    if (!visitor.Has(name)) continue;  // of a run that did not factor it: its start is drawn
    int64_t rank = matrix.shape.rank;
    visitor.Scalar(rank_name, rank);
    if (rank != matrix.shape.rank) continue;
    visitor.Shard(name, matrix.q.View({matrix.q.size()}), {{matrix.q.size()}, {0}, {matrix.q.size()}});
  }
}

int64_t FactoredGradients::bytes() const {
  int64_t bytes = 0;
  for (const auto& [id, matrix] : matrices_) bytes += matrix.q.bytes() + matrix.p.bytes() + matrix.next.bytes();
  return bytes;
}

}  // namespace shoal
