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

int64_t MostRank(const Param& param) { return param.shape.size() < 2 ? 0 : std::min(Rows(param), Columns(param)); }

void FactoredGradients::Draw(Matrix& matrix, int from_column) const {
  PowerSgdStart(matrix.shape, seed_, NameHash(matrix.param->name), 0, from_column, matrix.q.data<float>());
}

void FactoredGradients::SetRank(const Param& param, int rank) {
  Matrix& matrix = matrices_[param.id];
  const int before = matrix.param == nullptr ? 0 : matrix.shape.rank;
  if (before == rank) return;
  const Tensor old = matrix.q;
  matrix = Matrix();
  matrix.param = &param;
  matrix.shape = {Rows(param), Columns(param), rank};
  matrix.q = Tensor::Zeros({matrix.shape.columns, rank}, DType::kF32);
  const int kept = std::min(before, rank);
  for (int64_t row = 0; row < matrix.shape.columns && kept > 0; ++row)
    std::copy_n(old.data<float>() + row * before, kept, matrix.q.data<float>() + row * rank);
  Draw(matrix, kept);
}

void FactoredGradients::BeginStep() {
  for (auto& [id, matrix] : matrices_) matrix.has_next = Matrix::Next::kNone;
}

void FactoredGradients::Start(absl::Span<const Input> inputs) {
  if (inputs.empty()) return;
  int64_t size = 0;
  for (const Input& i : inputs) size += matrices_.at(i.param->id).shape.rows * matrices_.at(i.param->id).shape.rank;
  const Tensor together = Tensor::Zeros({size}, DType::kF32);
  int64_t at = 0;
  const size_t first = started_.size();
  for (const Input& i : inputs) {
    Matrix& matrix = matrices_.at(i.param->id);
    Draw(matrix, matrix.shape.rank);  // columns that went to zero
    matrix.input = i.input;
    const int64_t elements = matrix.shape.rows * matrix.shape.rank;
    matrix.p = together.Rows(at, at + elements);
    at += elements;
    PowerSgdProject(matrix.shape, i.input, matrix.q.data<float>(), matrix.p.data<float>());
    started_.push_back(&matrix);
  }
  const WorkPtr work = comm_.AllReduce(
      together, ReduceOp::kSum,
      {.tag = absl::StrCat("first factors of ", inputs[0].param->name, " and ", inputs.size() - 1, " more")});
  for (size_t i = first; i < started_.size(); ++i) started_[i]->work = work;
}

absl::Status FactoredGradients::FinishFactors() {
  errors_ = {};
  if (started_.empty()) return absl::OkStatus();
  int64_t size = 0, at = 0;
  for (const Matrix* m : started_) size += m->shape.columns * m->shape.rank;
  const Tensor together = Tensor::Zeros({size}, DType::kF32);
  for (Matrix* m : started_) {
    SHOAL_RETURN_IF_ERROR(m->work->Wait());
    m->work = nullptr;
    m->next = together.Rows(at, at + m->shape.columns * m->shape.rank);
    at += m->next.size();
    Orthonormalise(m->shape.rows, m->shape.rank, m->p.data<float>());
    PowerSgdBackProject(m->shape, m->input, m->p.data<float>(), m->next.data<float>());
    // Before it is summed: the rank's own.
    if (m->input.left == nullptr) continue;
    const Encoded left = PowerSgdResidual(m->shape, m->input, m->p.data<float>(), m->next.data<float>());
    errors_.squares += left.squares;
    errors_.error_squares += left.error_squares;
  }
  SHOAL_RETURN_IF_ERROR(comm_.AllReduce(together, ReduceOp::kSum, {.tag = "second factors"})->Wait());
  for (Matrix* m : started_) m->has_next = Matrix::Next::kThere;
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
  for (const auto& [id, matrix] : matrices_) bytes += matrix.q.bytes() + FactorBytes(*matrix.param, matrix.shape.rank);
  return bytes;
}

}  // namespace shoal
