// Winograd's transforms of conv_kernels.h; included once per dispatch target after conv_kernels-inl.h.
//
//        | 1  0 -1  0 |       | 1    0    0   |         | 1  1  1  0 |
//  B^T = | 0  1  1  0 |   G = | 1/2  1/2  1/2 |   A^T = | 0  1 -1 -1 |
//        | 0 -1  1  0 |       | 1/2 -1/2  1/2 |
//        | 0  1  0 -1 |       | 0    0    1   |
//
//  Y = A^T [ (G g G^T) * (B^T d B) ] A, with tile d, taps g and the product by elements.

// Calls fn(first lane) for whole vectors of n >= kLanes elements; the last one may overlap the one before.
template <class F>
HWY_INLINE void ForVectors(int64_t n, F fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i);
  if (i < n) fn(n - kLanes);
}

void WinogradInput(const float* const* pixels, int64_t n, float* out, int64_t stride) {
  const Floats d;
  ForVectors(n, [&](int64_t i) HWY_ATTR {
    Vector t[4][4];
    for (int column = 0; column < 4; ++column) {
      const Vector x0 = hn::LoadU(d, pixels[column] + i), x1 = hn::LoadU(d, pixels[4 + column] + i),
                   x2 = hn::LoadU(d, pixels[8 + column] + i), x3 = hn::LoadU(d, pixels[12 + column] + i);
      t[0][column] = hn::Sub(x0, x2);
      t[1][column] = hn::Add(x1, x2);
      t[2][column] = hn::Sub(x2, x1);
      t[3][column] = hn::Sub(x1, x3);
    }
    for (int row = 0; row < 4; ++row) {
      float* to = out + 4 * row * stride + i;
      hn::StoreU(hn::Sub(t[row][0], t[row][2]), d, to);
      hn::StoreU(hn::Add(t[row][1], t[row][2]), d, to + stride);
      hn::StoreU(hn::Sub(t[row][2], t[row][1]), d, to + 2 * stride);
      hn::StoreU(hn::Sub(t[row][1], t[row][3]), d, to + 3 * stride);
    }
  });
}

void WinogradOutput(const float* in, int64_t stride, int64_t n, float* const* pixels) {
  const Floats d;
  for (int64_t i = 0; i < n; i += kLanes) {
    Vector t[2][4];
    for (int column = 0; column < 4; ++column) {
      const float* from = in + column * stride + i;
      const Vector m0 = hn::LoadU(d, from), m1 = hn::LoadU(d, from + 4 * stride), m2 = hn::LoadU(d, from + 8 * stride),
                   m3 = hn::LoadU(d, from + 12 * stride);
      t[0][column] = hn::Add(hn::Add(m0, m1), m2);
      t[1][column] = hn::Sub(hn::Sub(m1, m2), m3);
    }
    for (int row = 0; row < 2; ++row) {
      const Vector left = hn::Add(hn::Add(t[row][0], t[row][1]), t[row][2]),
                   right = hn::Sub(hn::Sub(t[row][1], t[row][2]), t[row][3]);
      if (i + kLanes <= n) {
        hn::StoreU(left, d, pixels[2 * row] + i);
        hn::StoreU(right, d, pixels[2 * row + 1] + i);
        continue;
      }
      HWY_ALIGN float narrow[2][kLanes];
      hn::Store(left, d, narrow[0]);
      hn::Store(right, d, narrow[1]);
      for (int64_t j = i; j < n; ++j) {
        pixels[2 * row][j] = narrow[0][j - i];
        pixels[2 * row + 1][j] = narrow[1][j - i];
      }
    }
  }
}

void WinogradWeight(const float* taps, int64_t tap_stride, int64_t n, float* out, int64_t stride) {
  const Floats d;
  const Vector half = hn::Set(d, 0.5f);
  ForVectors(n, [&](int64_t i) HWY_ATTR {
    Vector t[4][3];
    for (int column = 0; column < 3; ++column) {
      const float* from = taps + column * tap_stride + i;
      const Vector g0 = hn::LoadU(d, from), g1 = hn::LoadU(d, from + 3 * tap_stride),
                   g2 = hn::LoadU(d, from + 6 * tap_stride);
      const Vector sum = hn::Add(g0, g2);
      t[0][column] = g0;
      t[1][column] = hn::Mul(half, hn::Add(sum, g1));
      t[2][column] = hn::Mul(half, hn::Sub(sum, g1));
      t[3][column] = g2;
    }
    for (int row = 0; row < 4; ++row) {
      float* to = out + 4 * row * stride + i;
      const Vector sum = hn::Add(t[row][0], t[row][2]);
      hn::StoreU(t[row][0], d, to);
      hn::StoreU(hn::Mul(half, hn::Add(sum, t[row][1])), d, to + stride);
      hn::StoreU(hn::Mul(half, hn::Sub(sum, t[row][1])), d, to + 2 * stride);
      hn::StoreU(t[row][2], d, to + 3 * stride);
    }
  });
}

void WinogradOutputBack(const float* const* pixels, int64_t n, float* out, int64_t stride) {
  const Floats d;
  ForVectors(n, [&](int64_t i) HWY_ATTR {
    Vector t[4][2];
    for (int column = 0; column < 2; ++column) {
      const Vector y0 = hn::LoadU(d, pixels[column] + i), y1 = hn::LoadU(d, pixels[2 + column] + i);
      t[0][column] = y0;
      t[1][column] = hn::Add(y0, y1);
      t[2][column] = hn::Sub(y0, y1);
      t[3][column] = hn::Neg(y1);
    }
    for (int row = 0; row < 4; ++row) {
      float* to = out + 4 * row * stride + i;
      hn::StoreU(t[row][0], d, to);
      hn::StoreU(hn::Add(t[row][0], t[row][1]), d, to + stride);
      hn::StoreU(hn::Sub(t[row][0], t[row][1]), d, to + 2 * stride);
      hn::StoreU(hn::Neg(t[row][1]), d, to + 3 * stride);
    }
  });
}

void WinogradWeightBack(float* values, int64_t n, int64_t stride) {
  const Floats d;
  const Vector half = hn::Set(d, 0.5f);
  for (int64_t i = 0; i < n; i += kLanes) {
    Vector t[3][4];
    for (int column = 0; column < 4; ++column) {
      const float* from = values + column * stride + i;
      const Vector m0 = hn::LoadU(d, from), m1 = hn::LoadU(d, from + 4 * stride), m2 = hn::LoadU(d, from + 8 * stride),
                   m3 = hn::LoadU(d, from + 12 * stride);
      const Vector mean = hn::Mul(half, hn::Add(m1, m2));
      t[0][column] = hn::Add(m0, mean);
      t[1][column] = hn::Mul(half, hn::Sub(m1, m2));
      t[2][column] = hn::Add(mean, m3);
    }
    for (int row = 0; row < 3; ++row) {
      float* to = values + 3 * row * stride + i;
      const Vector mean = hn::Mul(half, hn::Add(t[row][1], t[row][2]));
      hn::StoreU(hn::Add(t[row][0], mean), d, to);
      hn::StoreU(hn::Mul(half, hn::Sub(t[row][1], t[row][2])), d, to + stride);
      hn::StoreU(hn::Add(mean, t[row][3]), d, to + 2 * stride);
    }
  }
}
