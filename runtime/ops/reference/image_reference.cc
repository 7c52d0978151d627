#include "runtime/ops/reference/image_reference.h"

#include <algorithm>
#include <cmath>

namespace shoal::reference {
namespace {

// Calls fn(index in x, index in weight, index in y) for every product of a convolution.
template <class F>
void ForProducts(const Conv& v, F fn) {
  const int64_t gc = v.c / v.groups, go = v.o / v.groups;
  for (int64_t n = 0; n < v.n; ++n) {
    for (int64_t p = 0; p < v.p(); ++p) {
      for (int64_t q = 0; q < v.q(); ++q) {
        for (int64_t i = 0; i < v.kh; ++i) {
          for (int64_t j = 0; j < v.kw; ++j) {
            const int64_t row = p * v.stride - v.padding + i, column = q * v.stride - v.padding + j;
            if (row < 0 || row >= v.h || column < 0 || column >= v.w) continue;
            for (int64_t o = 0; o < v.o; ++o) {
              for (int64_t c = 0; c < gc; ++c) {
                fn(((n * v.h + row) * v.w + column) * v.c + o / go * gc + c, ((o * v.kh + i) * v.kw + j) * gc + c,
                   ((n * v.p() + p) * v.q() + q) * v.o + o);
              }
            }
          }
        }
      }
    }
  }
}

// Calls fn(index in x, index in y) for every pixel of every window, row by row.
template <class F>
void ForWindows(const Pool& v, int64_t p_out, int64_t q_out, F fn) {
  for (int64_t n = 0; n < v.n; ++n) {
    for (int64_t p = 0; p < p_out; ++p) {
      for (int64_t q = 0; q < q_out; ++q) {
        for (int64_t c = 0; c < v.c; ++c) {
          std::vector<int64_t> inside;
          for (int64_t i = 0; i < v.size; ++i) {
            for (int64_t j = 0; j < v.size; ++j) {
              const int64_t row = p * v.stride - v.padding + i, column = q * v.stride - v.padding + j;
              if (row < 0 || row >= v.h || column < 0 || column >= v.w) continue;
              inside.push_back(((n * v.h + row) * v.w + column) * v.c + c);
            }
          }
          fn(inside, ((n * p_out + p) * q_out + q) * v.c + c);
        }
      }
    }
  }
}

int64_t Largest(const std::vector<int64_t>& inside, const Values& x) {
  int64_t best = inside[0];
  for (const int64_t i : inside) {
    if (x[i] > x[best]) best = i;
  }
  return best;
}

Pool Pairs(Pool pool) {
  pool.size = pool.stride = 2;
  pool.padding = 0;
  return pool;
}

}  // namespace

Values Conv2d(const Conv& conv, const Values& x, const Values& weight) {
  Values y(conv.n * conv.p() * conv.q() * conv.o);
  ForProducts(conv, [&](int64_t at, int64_t w, int64_t out) { y[out] += x[at] * weight[w]; });
  return y;
}

Values Conv2dBackwardInput(const Conv& conv, const Values& dy, const Values& weight) {
  Values dx(conv.n * conv.h * conv.w * conv.c);
  ForProducts(conv, [&](int64_t at, int64_t w, int64_t out) { dx[at] += dy[out] * weight[w]; });
  return dx;
}

Values Conv2dBackwardWeight(const Conv& conv, const Values& dy, const Values& x) {
  Values dweight(conv.o * conv.kh * conv.kw * (conv.c / conv.groups));
  ForProducts(conv, [&](int64_t at, int64_t w, int64_t out) { dweight[w] += dy[out] * x[at]; });
  return dweight;
}

BatchStatistics Statistics(const BatchNorm& norm) {
  const size_t c = norm.weight.size(), rows = norm.x.size() / c;
  BatchStatistics s{Values(c), Values(c), Values(c), Values(c)};
  for (size_t i = 0; i < norm.x.size(); ++i) {
    s.sum[i % c] += norm.x[i];
    s.squares[i % c] += norm.x[i] * norm.x[i];
  }
  Values variance(c);
  for (size_t i = 0; i < c; ++i) s.mean[i] = s.sum[i] / static_cast<double>(rows);
  for (size_t i = 0; i < norm.x.size(); ++i)
    variance[i % c] += (norm.x[i] - s.mean[i % c]) * (norm.x[i] - s.mean[i % c]) / static_cast<double>(rows);
  for (size_t i = 0; i < c; ++i) s.rstd[i] = 1 / std::sqrt(variance[i] + norm.epsilon);
  return s;
}

namespace {

// Before the ReLU.
Values Normalised(const BatchNorm& norm, const BatchStatistics& s) {
  const size_t c = norm.weight.size();
  Values y(norm.x.size());
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = (norm.x[i] - s.mean[i % c]) * s.rstd[i % c] * norm.weight[i % c] + norm.bias[i % c];
    if (!norm.residual.empty()) y[i] += norm.residual[i];
  }
  return y;
}

}  // namespace

Values BatchNormForward(const BatchNorm& norm) {
  Values y = Normalised(norm, Statistics(norm));
  for (double& v : y) v = norm.relu ? std::max(v, 0.0) : v;
  return y;
}

BatchNormGrads BatchNormBackward(const BatchNorm& norm, const Values& dy) {
  const size_t c = norm.weight.size();
  const auto rows = static_cast<double>(norm.x.size() / c);
  const BatchStatistics s = Statistics(norm);
  const Values y = Normalised(norm, s);
  BatchNormGrads g{Values(norm.x.size()), dy, Values(c), Values(c)};
  const auto xhat = [&](size_t i) { return (norm.x[i] - s.mean[i % c]) * s.rstd[i % c]; };
  for (size_t i = 0; i < dy.size(); ++i) {
    if (norm.relu && y[i] <= 0) g.dresidual[i] = 0;
    g.dbias[i % c] += g.dresidual[i];
    g.dweight[i % c] += g.dresidual[i] * xhat(i);
  }
  for (size_t i = 0; i < dy.size(); ++i) {
    g.dx[i] = norm.weight[i % c] * s.rstd[i % c] *
              (g.dresidual[i] - g.dbias[i % c] / rows - xhat(i) * g.dweight[i % c] / rows);
  }
  return g;
}

Values MaxPool(const Pool& pool, const Values& x) {
  Values y(pool.n * pool.p() * pool.q() * pool.c);
  ForWindows(pool, pool.p(), pool.q(),
             [&](const std::vector<int64_t>& inside, int64_t out) { y[out] = x[Largest(inside, x)]; });
  return y;
}

Values MaxPoolBackward(const Pool& pool, const Values& dy, const Values& x) {
  Values dx(x.size());
  ForWindows(pool, pool.p(), pool.q(),
             [&](const std::vector<int64_t>& inside, int64_t out) { dx[Largest(inside, x)] += dy[out]; });
  return dx;
}

Values AvgPool(const Pool& pool, const Values& x) {
  const int64_t p = (pool.h + 1) / 2, q = (pool.w + 1) / 2;
  Values y(pool.n * p * q * pool.c);
  ForWindows(Pairs(pool), p, q, [&](const std::vector<int64_t>& inside, int64_t out) {
    for (const int64_t i : inside) y[out] += x[i] / static_cast<double>(inside.size());
  });
  return y;
}

Values AvgPoolBackward(const Pool& pool, const Values& dy) {
  Values dx(pool.n * pool.h * pool.w * pool.c);
  ForWindows(Pairs(pool), (pool.h + 1) / 2, (pool.w + 1) / 2, [&](const std::vector<int64_t>& inside, int64_t out) {
    for (const int64_t i : inside) dx[i] += dy[out] / static_cast<double>(inside.size());
  });
  return dx;
}

}  // namespace shoal::reference
