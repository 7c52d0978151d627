// Bodies of row_kernels.h, templated over the element type; included once per dispatch target, inside
// HWY_BEFORE_NAMESPACE. Loops are plain: the compiler vectorises them (the file is built with -O3). Reductions go
// through 16 explicit lanes.

constexpr int kLanes = 16;

template <class T, class F>
HWY_INLINE T SumLanes(int64_t n, F term) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  }
  for (; i < n; ++i) lanes[i % kLanes] += term(i);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// tanh(u) = 2 sigmoid(2u) - 1; the difference loses no relative accuracy that GELU's 1 + tanh would keep.
template <class T>
HWY_INLINE T Tanh(T u) {
  return T(2) * Sigmoid(T(2) * u) - T(1);
}

template <class T>
void LayerNormRowT(const T* x, const T* weight, const T* bias, int64_t n, T epsilon, T* y, T* stats) {
  const T mean = SumLanes<T>(n, [x](int64_t i) HWY_ATTR { return x[i]; }) / static_cast<T>(n);
  const T variance =
      SumLanes<T>(n, [x, mean](int64_t i) HWY_ATTR { return (x[i] - mean) * (x[i] - mean); }) / static_cast<T>(n);
  const T rstd = T(1) / std::sqrt(variance + epsilon);
  stats[0] = mean;
  stats[1] = rstd;
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}

template <class T>
void LayerNormBackRowT(const T* dy, const T* x, const T* weight, const T* stats, int64_t n, T add_dx, T* dx, T* dweight,
                       T* dbias) {
  const T mean = stats[0], rstd = stats[1];
  if (dweight != nullptr) {
    for (int64_t i = 0; i < n; ++i) dweight[i] += dy[i] * ((x[i] - mean) * rstd);
    for (int64_t i = 0; i < n; ++i) dbias[i] += dy[i];
  }
  if (dx == nullptr) return;
  const T a = SumLanes<T>(n, [=](int64_t i) HWY_ATTR { return dy[i] * weight[i]; }) / static_cast<T>(n);
  const T b = SumLanes<T>(n, [=](int64_t i) HWY_ATTR { return dy[i] * weight[i] * ((x[i] - mean) * rstd); }) /
              static_cast<T>(n);
  if (add_dx == T(0)) {
    for (int64_t i = 0; i < n; ++i) dx[i] = rstd * (dy[i] * weight[i] - a - (x[i] - mean) * rstd * b);
  } else {
    for (int64_t i = 0; i < n; ++i) dx[i] += rstd * (dy[i] * weight[i] - a - (x[i] - mean) * rstd * b);
  }
}

template <class T>
void RmsNormRowT(const T* x, const T* weight, int64_t n, T epsilon, T* y, T* rstd_out) {
  const T rstd =
      T(1) / std::sqrt(SumLanes<T>(n, [x](int64_t i) HWY_ATTR { return x[i] * x[i]; }) / static_cast<T>(n) + epsilon);
  *rstd_out = rstd;
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * rstd * weight[i];
}

template <class T>
void RmsNormBackRowT(const T* dy, const T* x, const T* weight, T rstd, int64_t n, T add_dx, T* dx, T* dweight) {
  if (dweight != nullptr) {
    for (int64_t i = 0; i < n; ++i) dweight[i] += dy[i] * (x[i] * rstd);
  }
  if (dx == nullptr) return;
  const T b =
      SumLanes<T>(n, [=](int64_t i) HWY_ATTR { return dy[i] * weight[i] * x[i]; }) * rstd * rstd / static_cast<T>(n);
  if (add_dx == T(0)) {
    for (int64_t i = 0; i < n; ++i) dx[i] = rstd * (dy[i] * weight[i] - x[i] * b);
  } else {
    for (int64_t i = 0; i < n; ++i) dx[i] += rstd * (dy[i] * weight[i] - x[i] * b);
  }
}

template <class T>
void GeluRowT(const T* x, int64_t n, T* y) {
  constexpr T kA = T(0.7978845608028654), kB = T(0.044715);
  for (int64_t i = 0; i < n; ++i) {
    const T v = x[i];
    y[i] = v * Sigmoid(T(2) * kA * (v + kB * v * v * v));  // (1 + tanh u) / 2 = sigmoid(2u)
  }
}

template <class T>
void GeluBackRowT(const T* dy, const T* x, int64_t n, T* dx) {
  constexpr T kA = T(0.7978845608028654), kB = T(0.044715);
  for (int64_t i = 0; i < n; ++i) {
    const T v = x[i];
    const T s = Sigmoid(T(2) * kA * (v + kB * v * v * v));
    dx[i] = dy[i] * (s + v * s * (T(1) - s) * T(2) * kA * (T(1) + T(3) * kB * v * v));
  }
}

template <class T>
void SwiGluRowT(const T* gate, const T* up, int64_t n, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * Sigmoid(gate[i]) * up[i];
}

template <class T>
void SwiGluBackRowT(const T* dy, const T* gate, const T* up, int64_t n, T* dgate, T* dup) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = gate[i], u = up[i], d = dy[i], s = Sigmoid(g);
    dgate[i] = d * u * s * (T(1) + g * (T(1) - s));
    dup[i] = d * g * s;
  }
}

template <class T>
void RopeRowsT(T* rows, int64_t count, int64_t stride, const T* __restrict cosine, const T* __restrict sine, int64_t n,
               T sign) {
  for (int64_t r = 0; r < count; ++r) {
    T* __restrict x = rows + r * stride;
    T* __restrict y = x + n / 2;
    for (int64_t i = 0; i < n / 2; ++i) {
      const T a = x[i], b = y[i], c = cosine[i], s = sine[i] * sign;
      x[i] = a * c - b * s;
      y[i] = b * c + a * s;
    }
  }
}

template <class T>
T MaxRowT(const T* x, int64_t n) {
  T lanes[kLanes];
  for (T& lane : lanes) lane = -std::numeric_limits<T>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  for (int l = 1; l < kLanes; ++l) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}

template <class T>
T ExpRowT(T* x, int64_t n, T shift) {
  for (int64_t i = 0; i < n; ++i) x[i] = Exp(x[i] - shift);
  return SumLanes<T>(n, [x](int64_t i) HWY_ATTR { return x[i]; });
}

template <class T>
void SoftmaxBackRowT(const T* p, T* dp, int64_t n, T delta, T scale) {
  for (int64_t i = 0; i < n; ++i) dp[i] = p[i] * scale * (dp[i] - delta);
}

template <class T>
T DotRowT(const T* a, const T* b, int64_t n) {
  return SumLanes<T>(n, [a, b](int64_t i) HWY_ATTR { return a[i] * b[i]; });
}

template <class T>
void AddRowT(const T* a, const T* b, int64_t n, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}
template <class T>
void ScaleRowT(T* y, int64_t n, T factor) {
  for (int64_t i = 0; i < n; ++i) y[i] *= factor;
}
template <class T>
void ShiftRowT(T* y, int64_t n, T summand) {
  for (int64_t i = 0; i < n; ++i) y[i] += summand;
}
template <class T>
void AxpyRowT(const T* x, int64_t n, T factor, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

template <class T>
double SumRowT(const T* x, int64_t n) {
  return SumLanes<double>(n, [x](int64_t i) HWY_ATTR { return static_cast<double>(x[i]); });
}
template <class T>
double SumOfSquaresRowT(const T* x, int64_t n) {
  return SumLanes<double>(n, [x](int64_t i) HWY_ATTR { return static_cast<double>(x[i]) * x[i]; });
}

template <class T>
T MaxAbsRowT(const T* x, int64_t n) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = std::abs(x[i + l]) > lanes[l] ? std::abs(x[i + l]) : lanes[l];
  }
  for (; i < n; ++i) lanes[0] = std::abs(x[i]) > lanes[0] ? std::abs(x[i]) : lanes[0];
  for (int l = 1; l < kLanes; ++l) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}
