// M passes through in blocks of 4 rows. A factor of M's columns lies in tiles of 16 columns, [tile][rank][column % 16],
// so that all three products run along the row in memory; ranks are padded with zeros to a multiple of 4. Every element
// has one order of summation, whatever the width of vectors: 16 lanes over columns, one by one over rows and ranks.
#include "comm/codec/power_sgd.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "comm/codec/kernels.h"
#include "runtime/base/rng.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/codec/power_sgd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kTile = 16, kRows = 4, kRanks = 4;

// Halves are added to each other, so that the sum vectorises.
template <class T>
HWY_INLINE T SumOf(T* lanes) {
  for (int64_t half = kTile / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[half + l];
  }
  return lanes[0];
}

void LoadRow(const float* __restrict gradient, const float* __restrict residual, float scale, int64_t n,
             float* __restrict x) {
  if (residual == nullptr) {
    for (int64_t i = 0; i < n; ++i) x[i] = gradient[i];
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = gradient[i] + scale * residual[i];
  }
}

// p[4, ranks] = x[4, 16 tiles] q. Two rows and four ranks share what they load, and keep to the registers of AVX2.
void ProjectBlock(const float* HWY_RESTRICT x, int64_t tiles, const float* HWY_RESTRICT q, int64_t ranks,
                  float* HWY_RESTRICT p) {
  const hn::CappedTag<float, kTile> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = 0; row < kRows; row += 2) {
    const float* x0 = x + row * tiles * kTile;
    const float* x1 = x0 + tiles * kTile;
    for (int64_t j = 0; j < ranks; j += kRanks) {
      float sums[2 * kRanks][kTile];
      for (int64_t part = 0; part < kTile; part += lanes) {
        auto s00 = hn::Zero(d), s01 = s00, s02 = s00, s03 = s00, s10 = s00, s11 = s00, s12 = s00, s13 = s00;
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const float* from = q + (tile * ranks + j) * kTile + part;
          const auto a = hn::LoadU(d, x0 + tile * kTile + part), b = hn::LoadU(d, x1 + tile * kTile + part);
          const auto q0 = hn::LoadU(d, from), q1 = hn::LoadU(d, from + kTile);
          const auto q2 = hn::LoadU(d, from + 2 * kTile), q3 = hn::LoadU(d, from + 3 * kTile);
          s00 = hn::Add(s00, hn::Mul(a, q0));
          s01 = hn::Add(s01, hn::Mul(a, q1));
          s02 = hn::Add(s02, hn::Mul(a, q2));
          s03 = hn::Add(s03, hn::Mul(a, q3));
          s10 = hn::Add(s10, hn::Mul(b, q0));
          s11 = hn::Add(s11, hn::Mul(b, q1));
          s12 = hn::Add(s12, hn::Mul(b, q2));
          s13 = hn::Add(s13, hn::Mul(b, q3));
        }
        hn::StoreU(s00, d, sums[0] + part);
        hn::StoreU(s01, d, sums[1] + part);
        hn::StoreU(s02, d, sums[2] + part);
        hn::StoreU(s03, d, sums[3] + part);
        hn::StoreU(s10, d, sums[4] + part);
        hn::StoreU(s11, d, sums[5] + part);
        hn::StoreU(s12, d, sums[6] + part);
        hn::StoreU(s13, d, sums[7] + part);
      }
      for (int64_t s = 0; s < 2 * kRanks; ++s) p[(row + s / kRanks) * ranks + j + s % kRanks] = SumOf(sums[s]);
    }
  }
}

// q += x^T p, two ranks at once.
void BackProjectBlock(const float* HWY_RESTRICT x, int64_t tiles, const float* HWY_RESTRICT p, int64_t ranks,
                      float* HWY_RESTRICT q) {
  const hn::CappedTag<float, kTile> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t stride = tiles * kTile;
  for (int64_t j = 0; j < ranks; j += 2) {
    const float* from = p + j;
    const auto p00 = hn::Set(d, from[0]), p01 = hn::Set(d, from[1]);
    const auto p10 = hn::Set(d, from[ranks]), p11 = hn::Set(d, from[ranks + 1]);
    const auto p20 = hn::Set(d, from[2 * ranks]), p21 = hn::Set(d, from[2 * ranks + 1]);
    const auto p30 = hn::Set(d, from[3 * ranks]), p31 = hn::Set(d, from[3 * ranks + 1]);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t part = 0; part < kTile; part += lanes) {
        const float* at = x + tile * kTile + part;
        float* to = q + (tile * ranks + j) * kTile + part;
        const auto x0 = hn::LoadU(d, at), x1 = hn::LoadU(d, at + stride);
        const auto x2 = hn::LoadU(d, at + 2 * stride), x3 = hn::LoadU(d, at + 3 * stride);
        auto q0 = hn::LoadU(d, to), q1 = hn::LoadU(d, to + kTile);
        q0 = hn::Add(q0, hn::Mul(x0, p00));
        q1 = hn::Add(q1, hn::Mul(x0, p01));
        q0 = hn::Add(q0, hn::Mul(x1, p10));
        q1 = hn::Add(q1, hn::Mul(x1, p11));
        q0 = hn::Add(q0, hn::Mul(x2, p20));
        q1 = hn::Add(q1, hn::Mul(x2, p21));
        q0 = hn::Add(q0, hn::Mul(x3, p30));
        q1 = hn::Add(q1, hn::Mul(x3, p31));
        hn::StoreU(q0, d, to);
        hn::StoreU(q1, d, to + kTile);
      }
    }
  }
}

// out[4, 16 tiles] = p q^T.
void ReconstructBlock(const float* HWY_RESTRICT p, int64_t ranks, const float* HWY_RESTRICT q, int64_t tiles,
                      float* HWY_RESTRICT out) {
  const hn::CappedTag<float, kTile> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t stride = tiles * kTile;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t part = 0; part < kTile; part += lanes) {
      auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
      for (int64_t j = 0; j < ranks; ++j) {
        const auto column = hn::LoadU(d, q + (tile * ranks + j) * kTile + part);
        s0 = hn::Add(s0, hn::Mul(column, hn::Set(d, p[j])));
        s1 = hn::Add(s1, hn::Mul(column, hn::Set(d, p[ranks + j])));
        s2 = hn::Add(s2, hn::Mul(column, hn::Set(d, p[2 * ranks + j])));
        s3 = hn::Add(s3, hn::Mul(column, hn::Set(d, p[3 * ranks + j])));
      }
      float* to = out + tile * kTile + part;
      hn::StoreU(s0, d, to);
      hn::StoreU(s1, d, to + stride);
      hn::StoreU(s2, d, to + 2 * stride);
      hn::StoreU(s3, d, to + 3 * stride);
    }
  }
}

// Takes what is along `unit` out of four columns that follow each other; n is a multiple of 16.
void RemoveFromColumns(const double* HWY_RESTRICT unit, int64_t n, double* HWY_RESTRICT columns) {
  const hn::CappedTag<double, kTile> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  double sums[kRanks][kTile];
  for (int64_t part = 0; part < kTile; part += lanes) {
    auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t i = part; i < n; i += kTile) {
      const auto u = hn::LoadU(d, unit + i);
      s0 = hn::Add(s0, hn::Mul(u, hn::LoadU(d, columns + i)));
      s1 = hn::Add(s1, hn::Mul(u, hn::LoadU(d, columns + n + i)));
      s2 = hn::Add(s2, hn::Mul(u, hn::LoadU(d, columns + 2 * n + i)));
      s3 = hn::Add(s3, hn::Mul(u, hn::LoadU(d, columns + 3 * n + i)));
    }
    hn::StoreU(s0, d, sums[0] + part);
    hn::StoreU(s1, d, sums[1] + part);
    hn::StoreU(s2, d, sums[2] + part);
    hn::StoreU(s3, d, sums[3] + part);
  }
  for (int64_t c = 0; c < kRanks; ++c) {
    const double along = SumOf(sums[c]);
    double* __restrict column = columns + c * n;
    for (int64_t i = 0; i < n; ++i) column[i] -= along * unit[i];
  }
}

// n is a multiple of 16.
double DotLoop(const double* a, const double* b, int64_t n) {
  double sums[kTile] = {};
  for (int64_t i = 0; i < n; i += kTile) {
    for (int64_t l = 0; l < kTile; ++l) sums[l] += a[i + l] * b[i + l];
  }
  return SumOf(sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {

HWY_EXPORT(LoadRow);
HWY_EXPORT(ProjectBlock);
HWY_EXPORT(BackProjectBlock);
HWY_EXPORT(ReconstructBlock);
HWY_EXPORT(RemoveFromColumns);
HWY_EXPORT(DotLoop);

namespace {

using HWY_NAMESPACE::kRanks, HWY_NAMESPACE::kRows, HWY_NAMESPACE::kTile;
// A column that keeps less of its length beside the columns before it is the rounding of what depends on them.
constexpr double kDependent = 1e-6;

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Element [i, j] of a [n, rank] matrix in tiles of 16 rows.
struct Tiles {
  explicit Tiles(const PowerSgdShape& shape)
      : columns(shape.columns),
        rank(shape.rank),
        count(RoundUp(shape.columns, kTile) / kTile),
        ranks(RoundUp(shape.rank, kRanks)),
        q(static_cast<size_t>(count * ranks * kTile)) {}
  Tiles(const PowerSgdShape& shape, const float* from) : Tiles(shape) {
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t j = 0; j < rank; ++j) q[At(k, j)] = from[k * rank + j];
    }
  }
  void CopyTo(float* to) const {
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t j = 0; j < rank; ++j) to[k * rank + j] = q[At(k, j)];
    }
  }
  size_t At(int64_t k, int64_t j) const { return static_cast<size_t>((k / kTile * ranks + j) * kTile + k % kTile); }
  int64_t stride() const { return count * kTile; }  // of a block's rows

  int64_t columns, rank, count, ranks;
  std::vector<float> q;
};

// Rows [row, row + 4) of P with its ranks padded; rows beyond the last are zero.
struct RowsOfP {
  RowsOfP(const PowerSgdShape& shape, int64_t ranks)
      : rows(shape.rows), rank(shape.rank), ranks(ranks), p(static_cast<size_t>(kRows * ranks)) {}
  void Load(const float* from, int64_t row) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t j = 0; j < rank; ++j) p[r * ranks + j] = row + r < rows ? from[(row + r) * rank + j] : 0;
    }
  }
  void Store(int64_t row, float* to) const {
    for (int64_t r = 0; r < std::min(kRows, rows - row); ++r) {
      for (int64_t j = 0; j < rank; ++j) to[(row + r) * rank + j] = p[r * ranks + j];
    }
  }

  int64_t rows, rank, ranks;
  std::vector<float> p;
};

// fn(first row, the 4 rows of M from there; those beyond the last are zero).
template <class F>
void ForBlocks(const PowerSgdShape& shape, const CodecInput& input, int64_t stride, F fn) {
  std::vector<float> x(static_cast<size_t>(kRows * stride));
  for (int64_t row = 0; row < shape.rows; row += kRows) {
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t at = (row + r) * shape.columns;
      if (row + r < shape.rows) {
        HWY_DYNAMIC_DISPATCH(LoadRow)
        (input.gradient + at, input.residual == nullptr ? nullptr : input.residual + at, input.residual_scale,
         shape.columns, &x[r * stride]);
      } else {
        std::fill_n(&x[r * stride], stride, 0.0F);
      }
    }
    fn(row, x.data());
  }
}

// x = gradient + residual_scale * residual of any number of elements.
Stretch LoadLong(const CodecInput& input, int64_t at, int64_t n, float* x) {
  Stretch all;
  for (int64_t done = 0; done < n; done += kMostElements) {
    const Stretch stretch = LoadRun(input, at + done, std::min(kMostElements, n - done), x + done);
    all.squares += stretch.squares;
    all.finite = all.finite && stretch.finite;
  }
  return all;
}

// The columns of a [n, rank] matrix one after the other, each padded with zeros; `spare` columns of zeros follow.
struct Columns {
  Columns(int64_t n, int rank, int spare, const float* from)
      : padded(RoundUp(n, kTile)), x(static_cast<size_t>(padded * (rank + spare))) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < rank; ++j) x[j * padded + i] = static_cast<double>(from[i * rank + j]);
    }
  }
  double Dot(int64_t i, int64_t j) const {
    return HWY_DYNAMIC_DISPATCH(DotLoop)(&x[i * padded], &x[j * padded], padded);
  }

  int64_t padded;
  std::vector<double> x;
};

// Eigenvalues of a symmetric [n, n] matrix in descending order: cyclic Jacobi.
std::vector<double> Eigenvalues(int64_t n, std::vector<double> a) {
  constexpr int kSweeps = 30;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double off = 0, all = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) (i == j ? all : off) += a[i * n + j] * a[i * n + j];
    }
    if (!(off > 1e-22 * all)) break;  // NaN ends it too
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i + 1; j < n; ++j) {
        if (a[i * n + j] == 0) continue;
        const double theta = (a[j * n + j] - a[i * n + i]) / (2 * a[i * n + j]);
        const double tangent = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double cosine = 1 / std::sqrt(tangent * tangent + 1), sine = tangent * cosine;
        const auto rotate = [cosine, sine](double& x, double& y) {
          const double was = x;
          x = cosine * was - sine * y;
          y = sine * was + cosine * y;
        };
        for (int64_t k = 0; k < n; ++k) rotate(a[i * n + k], a[j * n + k]);
        for (int64_t k = 0; k < n; ++k) rotate(a[k * n + i], a[k * n + j]);
      }
    }
  }
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(a[i * n + i]);
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}

}  // namespace

void PowerSgdStart(const PowerSgdShape& shape, uint64_t seed, uint64_t tensor, uint32_t plan, int from_column,
                   float* q) {
  const Rng rng({seed, RngPurpose::kCodec, tensor, plan});
  for (int64_t j = 0; j < shape.rank; ++j) {
    bool zero = true;
    for (int64_t k = 0; j < from_column && k < shape.columns && zero; ++k) zero = q[k * shape.rank + j] == 0;
    if (!zero) continue;
    for (int64_t k = 0; k < shape.columns; ++k) {
      q[k * shape.rank + j] = rng.Normal(static_cast<uint64_t>(j), static_cast<uint64_t>(k));
    }
  }
}

void PowerSgdProject(const PowerSgdShape& shape, const CodecInput& input, const float* q, float* p) {
  const Tiles tiles(shape, q);
  RowsOfP block(shape, tiles.ranks);
  ForBlocks(shape, input, tiles.stride(), [&](int64_t row, const float* x) {
    HWY_DYNAMIC_DISPATCH(ProjectBlock)(x, tiles.count, tiles.q.data(), tiles.ranks, block.p.data());
    block.Store(row, p);
  });
}

void Orthonormalise(int64_t rows, int rank, float* p) {
  Columns columns(rows, rank, kRanks - 1, p);
  std::vector<double> length(static_cast<size_t>(rank));  // of what came in
  for (int64_t j = 0; j < rank; ++j) length[j] = std::sqrt(columns.Dot(j, j));
  for (int64_t j = 0; j < rank; ++j) {
    double* column = &columns.x[j * columns.padded];
    const double left = std::sqrt(columns.Dot(j, j));
    const double scale = left <= kDependent * length[j] ? 0 : 1 / left;
    for (int64_t i = 0; i < rows; ++i) {
      column[i] *= scale;
      p[i * rank + j] = static_cast<float>(column[i]);
    }
    for (int64_t after = j + 1; after < rank; after += kRanks) {
      HWY_DYNAMIC_DISPATCH(RemoveFromColumns)(column, columns.padded, &columns.x[after * columns.padded]);
    }
  }
}

void PowerSgdBackProject(const PowerSgdShape& shape, const CodecInput& input, const float* p, float* q) {
  Tiles tiles(shape);
  RowsOfP block(shape, tiles.ranks);
  ForBlocks(shape, input, tiles.stride(), [&](int64_t row, const float* x) {
    block.Load(p, row);
    HWY_DYNAMIC_DISPATCH(BackProjectBlock)(x, tiles.count, block.p.data(), tiles.ranks, tiles.q.data());
  });
  tiles.CopyTo(q);
}

Encoded PowerSgdResidual(const PowerSgdShape& shape, const CodecInput& input, const float* p, const float* q) {
  const Tiles tiles(shape, q);
  RowsOfP block(shape, tiles.ranks);
  std::vector<float> x(static_cast<size_t>(shape.columns)), decoded(static_cast<size_t>(kRows * tiles.stride()));
  std::vector<float> unwanted(input.left == nullptr ? x.size() : 0);
  Encoded all;
  for (int64_t row = 0; row < shape.rows; ++row) {
    if (row % kRows == 0) {
      block.Load(p, row);
      HWY_DYNAMIC_DISPATCH(ReconstructBlock)
      (block.p.data(), tiles.ranks, tiles.q.data(), tiles.count, decoded.data());
    }
    const int64_t at = row * shape.columns;
    const Stretch before = LoadLong(input, at, shape.columns, x.data());
    float* product = &decoded[row % kRows * tiles.stride()];
    const CodecInput difference = {.gradient = x.data(), .residual = product, .residual_scale = -1};
    const Stretch after =
        LoadLong(difference, 0, shape.columns, input.left == nullptr ? unwanted.data() : input.left + at);
    all.squares += before.squares;
    all.error_squares += after.squares;
    all.finite = all.finite && before.finite && after.finite;
  }
  return all;
}

void PowerSgdReconstruct(const PowerSgdShape& shape, const float* p, const float* q, float* out) {
  const Tiles tiles(shape, q);
  RowsOfP block(shape, tiles.ranks);
  std::vector<float> decoded(static_cast<size_t>(kRows * tiles.stride()));
  for (int64_t row = 0; row < shape.rows; row += kRows) {
    block.Load(p, row);
    HWY_DYNAMIC_DISPATCH(ReconstructBlock)(block.p.data(), tiles.ranks, tiles.q.data(), tiles.count, decoded.data());
    for (int64_t r = 0; r < std::min(kRows, shape.rows - row); ++r) {
      std::copy_n(&decoded[r * tiles.stride()], shape.columns, out + (row + r) * shape.columns);
    }
  }
}

double PowerSgdErrors(int64_t rows, int64_t columns, const CodecInput& input, absl::Span<const int> ranks,
                      absl::Span<double> errors) {
  constexpr int64_t kOversampling = 8;
  std::vector<float> x(static_cast<size_t>(columns));
  Stretch all;
  for (int64_t row = 0; row < rows; ++row) {
    const Stretch stretch = LoadLong(input, row * columns, columns, x.data());
    all.squares += stretch.squares;
    all.finite = all.finite && stretch.finite;
  }
  if (!all.finite) all.squares = std::numeric_limits<double>::quiet_NaN();
  const auto rank = static_cast<int>(std::min<int64_t>({ranks.back() + kOversampling, rows, columns}));
  const PowerSgdShape shape = {rows, columns, rank};
  std::vector<float> p(static_cast<size_t>(rows * rank)), q(static_cast<size_t>(columns * rank));
  PowerSgdStart(shape, 0, 0, 0, 0, q.data());
  for (int pass = 0; pass < 2 && all.finite; ++pass) {
    PowerSgdProject(shape, input, q.data(), p.data());
    Orthonormalise(rows, rank, p.data());
    PowerSgdBackProject(shape, input, p.data(), q.data());
  }
  // P has orthonormal columns, so Q = M^T P has the singular values of M's part in their span.
  const Columns factor(columns, rank, 0, q.data());
  std::vector<double> gram(static_cast<size_t>(rank) * static_cast<size_t>(rank));
  for (int64_t i = 0; i < rank; ++i) {
    for (int64_t j = 0; j <= i; ++j) gram[i * rank + j] = gram[j * rank + i] = factor.Dot(i, j);
  }
  const std::vector<double> squares = Eigenvalues(rank, gram);
  double left = all.squares;
  for (size_t i = 0, taken = 0; i < ranks.size(); ++i) {
    for (; taken < squares.size() && taken < static_cast<size_t>(ranks[i]); ++taken) left -= squares[taken];
    errors[i] = left < 0 ? 0 : left;
  }
  return all.squares;
}

}  // namespace shoal
#endif
