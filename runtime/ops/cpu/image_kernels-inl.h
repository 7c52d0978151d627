// Bodies of image_kernels.h, templated over the element type; included once per dispatch target, inside
// HWY_BEFORE_NAMESPACE. Loops are plain: the compiler vectorises them (the file is built with -O3). Outputs may be the
// very inputs, never shifted against them, which SHOAL_LANEWISE tells the compiler.

#if defined(__clang__)
#define SHOAL_LANEWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define SHOAL_LANEWISE _Pragma("GCC ivdep")
#endif

template <bool kRelu, bool kResidual, class T>
void NormRows(const NormBlock<T>& b, T* y) {
  for (int64_t r = 0; r < b.rows; ++r) {
    const T *x = b.x + r * b.c, *residual = kResidual ? b.residual + r * b.c : nullptr;
    const T *scale = b.scale, *shift = b.shift;
    T* to = y + r * b.c;
    SHOAL_LANEWISE
    for (int64_t i = 0; i < b.c; ++i) {
      T v = x[i] * scale[i] + shift[i];
      if constexpr (kResidual) v += residual[i];
      to[i] = kRelu && v < T(0) ? T(0) : v;
    }
  }
}

template <bool kRelu, bool kResidual, class T>
HWY_INLINE T Passed(T dy, T x, T scale, T shift, T residual) {
  if constexpr (!kRelu) return dy;
  T v = x * scale + shift;
  if constexpr (kResidual) v += residual;
  return v > T(0) ? dy : T(0);
}

template <bool kRelu, bool kResidual, class T>
void NormBackSumsOf(const T* dy, const NormBlock<T>& b, double* sums) {
  // Some rows a pass: a sum is loaded and stored once for them. Two loops, since compilers leave a choice between
  // floats that goes into sums of doubles scalar.
  constexpr int64_t kRows = 4, kChannels = 128;
  T passed[kRows * kChannels], normed[kRows * kChannels];
  for (int64_t r = 0; r < b.rows; r += kRows) {
    const int64_t rows = std::min(kRows, b.rows - r);
    for (int64_t first = 0; first < b.c; first += kChannels) {
      const int64_t n = std::min(kChannels, b.c - first);
      const T *scale = b.scale + first, *shift = b.shift + first, *mean = b.mean + first, *rstd = b.rstd + first;
      for (int64_t l = 0; l < rows; ++l) {
        const int64_t at = (r + l) * b.c + first;
        const T *g0 = dy + at, *x = b.x + at, *residual = kResidual ? b.residual + at : x;
        T *g = passed + l * kChannels, *xhat = normed + l * kChannels;
        SHOAL_LANEWISE
        for (int64_t i = 0; i < n; ++i) {
          g[i] = Passed<kRelu, kResidual>(g0[i], x[i], scale[i], shift[i], residual[i]);
          xhat[i] = (x[i] - mean[i]) * rstd[i];
        }
      }
      double *to = sums + first, *dots = to + b.c;
      SHOAL_LANEWISE
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0, dot = 0;
        for (int64_t l = 0; l < rows; ++l) {
          const auto g = static_cast<double>(passed[l * kChannels + i]);
          sum += g;
          dot += g * static_cast<double>(normed[l * kChannels + i]);
        }
        to[i] += sum;
        dots[i] += dot;
      }
    }
  }
}

template <bool kRelu, bool kResidual, class T>
void NormBackRows(const T* dy, const NormBlock<T>& b, const T* offset, const T* slope, T* dx, T* dresidual) {
  const int64_t c = b.c;
  const T *scale = b.scale, *shift = b.shift, *mean = b.mean;
  for (int64_t r = 0; r < b.rows; ++r) {
    const T *g0 = dy + r * c, *x0 = b.x + r * c, *residual = kResidual ? b.residual + r * c : x0;
    T *to = dx + r * c, *through = dresidual == nullptr ? nullptr : dresidual + r * c;
    if (through == nullptr) {
      SHOAL_LANEWISE
      for (int64_t i = 0; i < c; ++i) {
        const T g = Passed<kRelu, kResidual>(g0[i], x0[i], scale[i], shift[i], residual[i]);
        to[i] = scale[i] * (g - offset[i] - (x0[i] - mean[i]) * slope[i]);
      }
    } else {
      SHOAL_LANEWISE
      for (int64_t i = 0; i < c; ++i) {
        const T g = Passed<kRelu, kResidual>(g0[i], x0[i], scale[i], shift[i], residual[i]);
        const T d = scale[i] * (g - offset[i] - (x0[i] - mean[i]) * slope[i]);
        through[i] = g;
        to[i] = d;
      }
    }
  }
}

template <class T>
void Norm(const NormBlock<T>& b, T* y) {
  if (b.residual != nullptr) {
    b.relu ? NormRows<true, true>(b, y) : NormRows<false, true>(b, y);
  } else {
    b.relu ? NormRows<true, false>(b, y) : NormRows<false, false>(b, y);
  }
}
template <class T>
void NormBackSums(const T* dy, const NormBlock<T>& b, double* sums) {
  if (b.relu && b.residual != nullptr) return NormBackSumsOf<true, true>(dy, b, sums);
  if (b.relu) return NormBackSumsOf<true, false>(dy, b, sums);
  NormBackSumsOf<false, false>(dy, b, sums);
}
template <class T>
void NormBack(const T* dy, const NormBlock<T>& b, const T* offset, const T* slope, T* dx, T* dresidual) {
  if (b.relu && b.residual != nullptr) return NormBackRows<true, true>(dy, b, offset, slope, dx, dresidual);
  if (b.relu) return NormBackRows<true, false>(dy, b, offset, slope, dx, dresidual);
  NormBackRows<false, false>(dy, b, offset, slope, dx, dresidual);
}

template <class T>
void ChannelSums(const T* x, int64_t rows, int64_t c, double* sums) {
  constexpr int64_t kRows = 4;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    const T* x0 = x + r * c;
    SHOAL_LANEWISE
    for (int64_t i = 0; i < c; ++i) {
      double sum = 0, square = 0;
      for (int64_t l = 0; l < kRows; ++l) {
        const auto v = static_cast<double>(x0[l * c + i]);
        sum += v;
        square += v * v;
      }
      sums[i] += sum;
      sums[c + i] += square;
    }
  }
  for (; r < rows; ++r) {
    const T* x0 = x + r * c;
    SHOAL_LANEWISE
    for (int64_t i = 0; i < c; ++i) {
      const auto v = static_cast<double>(x0[i]);
      sums[i] += v;
      sums[c + i] += v * v;
    }
  }
}

template <class T>
void ChannelDots(const T* a, const T* b, int64_t rows, int64_t c, double* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const T *a0 = a + r * c, *b0 = b + r * c;
    SHOAL_LANEWISE
    for (int64_t i = 0; i < c; ++i) sums[i] += static_cast<double>(a0[i]) * static_cast<double>(b0[i]);
  }
}

template <class T>
void ChannelScale(const T* x, const T* s, int64_t rows, int64_t c, T* y) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* x0 = x + r * c;
    T* to = y + r * c;
    SHOAL_LANEWISE
    for (int64_t i = 0; i < c; ++i) to[i] = x0[i] * s[i];
  }
}

template <class T>
void MaxInto(const T* x, uint8_t id, int64_t c, T* best, uint8_t* argmax) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < c; ++i) {
    const bool more = !(x[i] <= best[i]);
    best[i] = more ? x[i] : best[i];
    argmax[i] = more ? id : argmax[i];
  }
}

template <class T>
void AddWhere(const T* dy, const uint8_t* argmax, uint8_t id, int64_t c, T* dx) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < c; ++i) dx[i] += argmax[i] == id ? dy[i] : T(0);
}

template <class T>
void Relu(const T* x, int64_t n, T* y) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] < T(0) ? T(0) : x[i];
}
template <class T>
void ReluBack(const T* dy, const T* y, int64_t n, T* dx) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < n; ++i) dx[i] = y[i] > T(0) ? dy[i] : T(0);
}
template <class T>
void SigmoidOf(const T* x, int64_t n, T* y) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < n; ++i) y[i] = Sigmoid(x[i]);
}
template <class T>
void SigmoidBack(const T* dy, const T* y, int64_t n, T* dx) {
  SHOAL_LANEWISE
  for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] * y[i] * (T(1) - y[i]);
}
