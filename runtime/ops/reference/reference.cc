#include "runtime/ops/reference/reference.h"

#include <algorithm>
#include <cmath>

namespace shoal::reference {

Values Matmul(const Values& a, const Values& b, int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b) {
  Values out(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += a[transpose_a ? l * m + i : i * k + l] * b[transpose_b ? j * k + l : l * n + j];
      out[i * n + j] = sum;
    }
  }
  return out;
}

Values ColumnSum(const Values& x, int64_t rows, int64_t columns) {
  Values out(columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c] += x[r * columns + c];
  }
  return out;
}

namespace {

// Calls fn(head, key head, query token, probabilities of keys begin.., begin).
template <class F>
void ForQueries(const AttentionShape& s, const Values& q, const Values& k, F fn) {
  const int64_t group = s.kv_group > 0 ? s.kv_group : s.heads / s.key_heads;
  for (size_t n = 0; n + 1 < s.cu_seqlens.size(); ++n) {
    const int64_t begin = s.cu_seqlens[n], end = s.cu_seqlens[n + 1];
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kh = (s.first_head + h) / group;
      for (int64_t i = begin; i < end; ++i) {
        Values p(i - begin + 1);
        double highest = -1e300, total = 0;
        for (int64_t j = begin; j <= i; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < s.size; ++c)
            dot += q[(i * s.heads + h) * s.size + c] * k[(j * s.key_heads + kh) * s.size + c];
          p[j - begin] = dot * s.scale;
          highest = std::max(highest, p[j - begin]);
        }
        for (double& x : p) total += x = std::exp(x - highest);
        for (double& x : p) x /= total;
        fn(h, kh, i, begin, p, highest + std::log(total));
      }
    }
  }
}

}  // namespace

AttentionOut Attention(const AttentionShape& s, const Values& q, const Values& k, const Values& v) {
  const int64_t tokens = s.cu_seqlens.back();
  AttentionOut result{Values(tokens * s.heads * s.size), Values(s.heads * tokens)};
  ForQueries(s, q, k, [&](int64_t h, int64_t kh, int64_t i, int64_t begin, const Values& p, double lse) {
    result.lse[h * tokens + i] = lse;
    for (int64_t j = begin; j <= i; ++j) {
      for (int64_t c = 0; c < s.size; ++c)
        result.out[(i * s.heads + h) * s.size + c] += p[j - begin] * v[(j * s.key_heads + kh) * s.size + c];
    }
  });
  return result;
}

AttentionGrads AttentionBackward(const AttentionShape& s, const Values& dout, const Values& q, const Values& k,
                                 const Values& v) {
  AttentionGrads g{Values(q.size()), Values(k.size()), Values(v.size())};
  ForQueries(s, q, k, [&](int64_t h, int64_t kh, int64_t i, int64_t begin, const Values& p, double) {
    const int64_t qi = (i * s.heads + h) * s.size;
    Values dp(p.size());
    double mean = 0;
    for (int64_t j = begin; j <= i; ++j) {
      const int64_t kj = (j * s.key_heads + kh) * s.size;
      for (int64_t c = 0; c < s.size; ++c) {
        dp[j - begin] += dout[qi + c] * v[kj + c];
        g.dv[kj + c] += p[j - begin] * dout[qi + c];
      }
      mean += p[j - begin] * dp[j - begin];
    }
    for (int64_t j = begin; j <= i; ++j) {
      const int64_t kj = (j * s.key_heads + kh) * s.size;
      const double ds = p[j - begin] * (dp[j - begin] - mean) * s.scale;
      for (int64_t c = 0; c < s.size; ++c) {
        g.dq[qi + c] += ds * k[kj + c];
        g.dk[kj + c] += ds * q[qi + c];
      }
    }
  });
  return g;
}

namespace {

struct Moments {
  double mean, rstd;
};
Moments LayerMoments(const double* x, int64_t n, double epsilon) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < n; ++i) mean += x[i] / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean) / static_cast<double>(n);
  return {mean, 1 / std::sqrt(variance + epsilon)};
}
Moments RmsMoments(const double* x, int64_t n, double epsilon) {
  double square = 0;
  for (int64_t i = 0; i < n; ++i) square += x[i] * x[i] / static_cast<double>(n);
  return {0, 1 / std::sqrt(square + epsilon)};
}

}  // namespace

Values LayerNorm(const Values& x, const Values& weight, const Values& bias, double epsilon) {
  const int64_t n = static_cast<int64_t>(weight.size());
  Values y(x.size());
  for (size_t r = 0; r < x.size() / n; ++r) {
    const Moments m = LayerMoments(&x[r * n], n, epsilon);
    for (int64_t i = 0; i < n; ++i) y[r * n + i] = (x[r * n + i] - m.mean) * m.rstd * weight[i] + bias[i];
  }
  return y;
}

Values RmsNorm(const Values& x, const Values& weight, double epsilon) {
  const int64_t n = static_cast<int64_t>(weight.size());
  Values y(x.size());
  for (size_t r = 0; r < x.size() / n; ++r) {
    const Moments m = RmsMoments(&x[r * n], n, epsilon);
    for (int64_t i = 0; i < n; ++i) y[r * n + i] = x[r * n + i] * m.rstd * weight[i];
  }
  return y;
}

NormGrads LayerNormBackward(const Values& dy, const Values& x, const Values& weight, double epsilon) {
  const int64_t n = static_cast<int64_t>(weight.size());
  NormGrads g{Values(x.size()), Values(n), Values(n)};
  for (size_t r = 0; r < x.size() / n; ++r) {
    const Moments m = LayerMoments(&x[r * n], n, epsilon);
    double a = 0, b = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double normal = (x[r * n + i] - m.mean) * m.rstd, w = dy[r * n + i] * weight[i];
      a += w / static_cast<double>(n);
      b += w * normal / static_cast<double>(n);
      g.dweight[i] += dy[r * n + i] * normal;
      g.dbias[i] += dy[r * n + i];
    }
    for (int64_t i = 0; i < n; ++i) {
      g.dx[r * n + i] = m.rstd * (dy[r * n + i] * weight[i] - a - (x[r * n + i] - m.mean) * m.rstd * b);
    }
  }
  return g;
}

NormGrads RmsNormBackward(const Values& dy, const Values& x, const Values& weight, double epsilon) {
  const int64_t n = static_cast<int64_t>(weight.size());
  NormGrads g{Values(x.size()), Values(n), {}};
  for (size_t r = 0; r < x.size() / n; ++r) {
    const Moments m = RmsMoments(&x[r * n], n, epsilon);
    double b = 0;
    for (int64_t i = 0; i < n; ++i) {
      b += dy[r * n + i] * weight[i] * x[r * n + i] * m.rstd / static_cast<double>(n);
      g.dweight[i] += dy[r * n + i] * x[r * n + i] * m.rstd;
    }
    for (int64_t i = 0; i < n; ++i) g.dx[r * n + i] = m.rstd * (dy[r * n + i] * weight[i] - x[r * n + i] * m.rstd * b);
  }
  return g;
}

Values Rope(const Values& x, const std::vector<int32_t>& positions, int64_t heads, int64_t size, double theta,
            double sign) {
  Values y(x.size());
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const size_t row = (t * heads + h) * size;
      for (int64_t i = 0; i < size / 2; ++i) {
        const double angle = positions[t] * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(size));
        const double c = std::cos(angle), s = sign * std::sin(angle);
        y[row + i] = x[row + i] * c - x[row + i + size / 2] * s;
        y[row + i + size / 2] = x[row + i + size / 2] * c + x[row + i] * s;
      }
    }
  }
  return y;
}

namespace {
constexpr double kRootTwoOverPi = 0.7978845608028653559;
}  // namespace

Values Gelu(const Values& x) {
  Values y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    y[i] = 0.5 * x[i] * (1 + std::tanh(kRootTwoOverPi * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
  return y;
}

Values GeluBackward(const Values& dy, const Values& x) {
  Values dx(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double t = std::tanh(kRootTwoOverPi * (x[i] + 0.044715 * x[i] * x[i] * x[i]));
    const double slope = kRootTwoOverPi * (1 + 3 * 0.044715 * x[i] * x[i]);
    dx[i] = dy[i] * (0.5 * (1 + t) + 0.5 * x[i] * (1 - t * t) * slope);
  }
  return dx;
}

Values SwiGlu(const Values& gate_up, int64_t ffn) {
  Values y(gate_up.size() / 2);
  for (size_t i = 0; i < y.size(); ++i) {
    const double gate = gate_up[i / ffn * 2 * ffn + i % ffn], up = gate_up[i / ffn * 2 * ffn + ffn + i % ffn];
    y[i] = gate / (1 + std::exp(-gate)) * up;
  }
  return y;
}

Values SwiGluBackward(const Values& dy, const Values& gate_up, int64_t ffn) {
  Values d(gate_up.size());
  for (size_t i = 0; i < dy.size(); ++i) {
    const size_t at = i / ffn * 2 * ffn + i % ffn;
    const double gate = gate_up[at], up = gate_up[at + ffn], sigmoid = 1 / (1 + std::exp(-gate));
    d[at] = dy[i] * up * sigmoid * (1 + gate * (1 - sigmoid));
    d[at + ffn] = dy[i] * gate * sigmoid;
  }
  return d;
}

Values Embedding(const std::vector<int32_t>& tokens, const Values& table, int64_t width) {
  Values out(tokens.size() * width);
  for (size_t t = 0; t < tokens.size(); ++t) std::copy_n(&table[tokens[t] * width], width, &out[t * width]);
  return out;
}

Values EmbeddingBackward(const std::vector<int32_t>& tokens, const Values& dout, int64_t vocabulary, int64_t width) {
  Values d(vocabulary * width);
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (int64_t c = 0; c < width; ++c) d[tokens[t] * width + c] += dout[t * width + c];
  }
  return d;
}

CrossEntropyOut LinearCrossEntropy(const Values& hidden, const Values& weight, const std::vector<int32_t>& labels,
                                   int64_t width, double grad_scale, double label_smoothing) {
  const int64_t rows = static_cast<int64_t>(labels.size()), v = static_cast<int64_t>(weight.size()) / width;
  Values logits = Matmul(hidden, weight, rows, v, width, false, true);
  CrossEntropyOut out;
  for (int64_t r = 0; r < rows; ++r) {
    double* row = &logits[r * v];
    if (labels[r] < 0) {
      std::fill_n(row, v, 0.0);
      continue;
    }
    const double highest = *std::max_element(row, row + v);
    out.correct += std::max_element(row, row + v) - row == labels[r];
    const auto target = [&](int64_t i) {
      return (i == labels[r] ? 1 - label_smoothing : 0) + label_smoothing / static_cast<double>(v);
    };
    double total = 0;
    for (int64_t i = 0; i < v; ++i) total += std::exp(row[i] - highest);
    for (int64_t i = 0; i < v; ++i) {
      const double log_probability = row[i] - highest - std::log(total);
      out.loss -= target(i) * log_probability;
      row[i] = grad_scale * (std::exp(log_probability) - target(i));
    }
  }
  out.dhidden = Matmul(logits, weight, rows, width, v, false, false);
  out.dweight = Matmul(logits, hidden, v, width, rows, true, false);
  return out;
}

}  // namespace shoal::reference
