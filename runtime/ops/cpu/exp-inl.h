// exp and sigmoid of the vectorised loops; included once per dispatch target, inside HWY_BEFORE_NAMESPACE.

// exp, branch-free: 2^round(x log2 e) times a polynomial of the remainder (relative error < 1.2e-7 for float).
HWY_INLINE float Exp(float x) {
  x = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
  const float scaled = x * 1.44269504088896341f;
  const float shifted = scaled + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const float whole = shifted - 12582912.0f;
  float r = x - whole * 0.693145751953125f;
  r -= whole * 1.42860682030941723212e-6f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const int32_t power = (bits - 0x4B400000 + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  return p * scale;
}
HWY_INLINE double Exp(double x) { return std::exp(x); }

template <class T>
HWY_INLINE T Sigmoid(T x) {
  return T(1) / (T(1) + Exp(-x));
}
