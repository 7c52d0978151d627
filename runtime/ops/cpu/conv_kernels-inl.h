// Bodies of conv_kernels.h; included once per dispatch target, inside HWY_BEFORE_NAMESPACE.

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
// Sums of six rows, one vector of each column group and a broadcast fill 16 (SSE, AVX2) or 32 (AVX-512) registers.
constexpr int kVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr int kPanel = kVectors * kLanes;
constexpr int kMostRows = 6;

HWY_INLINE void StoreSums(const Vector* sums, int64_t columns, bool add, float* out) {
  const Floats d;
  if (columns == kPanel) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector old = add ? hn::LoadU(d, out + v * kLanes) : hn::Zero(d);
      hn::StoreU(hn::Add(sums[v], old), d, out + v * kLanes);
    }
    return;
  }
  HWY_ALIGN float narrow[kPanel];
  for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, narrow + v * kLanes);
  for (int64_t j = 0; j < columns; ++j) out[j] = narrow[j] + (add ? out[j] : 0.0f);
}

// Calls block(count, first) for 1 to kMostRows of `total` things at a time, count a compile-time constant. Blocks are
// of nearly equal size: the last is no sliver.
template <class Block>
void ForCounts(int64_t total, Block block) {
  for (int64_t first = 0, blocks = (total + kMostRows - 1) / kMostRows; blocks > 0; --blocks) {
    const int64_t count = (total - first + blocks - 1) / blocks;
    switch (count) {
      case 6:
        block(std::integral_constant<int, 6>(), first);
        break;
      case 5:
        block(std::integral_constant<int, 5>(), first);
        break;
      case 4:
        block(std::integral_constant<int, 4>(), first);
        break;
      case 3:
        block(std::integral_constant<int, 3>(), first);
        break;
      case 2:
        block(std::integral_constant<int, 2>(), first);
        break;
      default:
        block(std::integral_constant<int, 1>(), first);
    }
    first += count;
  }
}

template <int kRows>
void RowsBlock(const RowTable& table, int64_t first, absl::Span<const ProductRun> runs, const float* panel,
               int64_t columns, bool add) {
  const Floats d;
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
  }
  for (const ProductRun& run : runs) {
    const float* a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = table.a + table.a_at[first + r] + run.a;
    const float* b = panel + run.b * kPanel;
    for (int64_t k = 0; k < run.length; ++k, b += kPanel) {
      Vector right[kVectors];
      for (int v = 0; v < kVectors; ++v) right[v] = hn::LoadU(d, b + v * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Vector left = hn::Set(d, a[r][k]);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(left, right[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) StoreSums(sums[r], columns, add, table.out + table.out_at[first + r]);
}

void Rows(const RowTable& table, absl::Span<const ProductRun> runs, const float* panel, int64_t columns,
          ops::Accumulate accumulate) {
  const bool add = accumulate == ops::Accumulate::kAdd;
  ForCounts(table.rows, [&](auto count, int64_t first)
                            HWY_ATTR { RowsBlock<count.value>(table, first, runs, panel, columns, add); });
}

template <int kChannels>
void OuterBlock(const PixelTable& table, int64_t first, bool add, float* out) {
  const Floats d;
  Vector sums[kChannels][kVectors];
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) sums[c][v] = hn::Zero(d);
  }
  const float *left = table.a + first, *right = table.b;
  for (int64_t k = 0; k < table.pixels; ++k) {
    const float *a = left + table.a_at[k], *b = right + table.b_at[k];
    Vector columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = hn::LoadU(d, b + v * kLanes);
    for (int c = 0; c < kChannels; ++c) {
      const Vector value = hn::Set(d, a[c]);
      for (int v = 0; v < kVectors; ++v) sums[c][v] = hn::MulAdd(value, columns[v], sums[c][v]);
    }
  }
  for (int c = 0; c < kChannels; ++c) StoreSums(sums[c], kPanel, add, out + (first + c) * kPanel);
}

void Outer(const PixelTable& table, int64_t channels, ops::Accumulate accumulate, float* out) {
  const bool add = accumulate == ops::Accumulate::kAdd;
  ForCounts(channels, [&](auto count, int64_t first) HWY_ATTR { OuterBlock<count.value>(table, first, add, out); });
}

// The four columns of a block of four rows.
struct Square {
  static constexpr int64_t kSide = 4;
#if HWY_TARGET == HWY_SCALAR
  float columns[kSide][kSide];
  Square(const float* from, int64_t stride) {
    for (int r = 0; r < kSide; ++r) {
      for (int c = 0; c < kSide; ++c) columns[c][r] = from[r * stride + c];
    }
  }
  void Store(int c, float* to) const { std::memcpy(to, columns[c], sizeof(columns[c])); }
#else
  using Four = hn::FixedTag<float, kSide>;
  hn::Vec<Four> columns[kSide];
  HWY_INLINE Square(const float* from, int64_t stride) {
    const Four d;
    const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + stride), r2 = hn::LoadU(d, from + 2 * stride),
               r3 = hn::LoadU(d, from + 3 * stride);
    const auto low01 = hn::InterleaveLower(d, r0, r1), low23 = hn::InterleaveLower(d, r2, r3),
               high01 = hn::InterleaveUpper(d, r0, r1), high23 = hn::InterleaveUpper(d, r2, r3);
    columns[0] = hn::ConcatLowerLower(d, low23, low01);
    columns[1] = hn::ConcatUpperUpper(d, low23, low01);
    columns[2] = hn::ConcatLowerLower(d, high23, high01);
    columns[3] = hn::ConcatUpperUpper(d, high23, high01);
  }
  HWY_INLINE void Store(int c, float* to) const { hn::StoreU(columns[c], Four(), to); }
#endif
};

// Calls fn(row, column) for the squares of a [rows, columns] matrix, one cache line of columns at a time.
template <class F>
HWY_INLINE void ForSquares(int64_t rows, int64_t columns, F fn) {
  constexpr int64_t kLine = 16;
  for (int64_t line = 0; line < columns; line += kLine) {
    for (int64_t r = 0; r + Square::kSide <= rows; r += Square::kSide) {
      for (int64_t c = line; c < line + kLine && c + Square::kSide <= columns; c += Square::kSide) fn(r, c);
    }
  }
}

void Transpose(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
  ForSquares(rows, columns, [&](int64_t r, int64_t c) HWY_ATTR {
    const Square square(from + r * stride + c, stride);
    for (int i = 0; i < Square::kSide; ++i) square.Store(i, to + (c + i) * kPanel + r);
  });
  const int64_t whole_rows = rows / Square::kSide * Square::kSide,
                whole_columns = columns / Square::kSide * Square::kSide;
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; ++r) to[c * kPanel + r] = from[r * stride + c];
    for (int64_t r = rows; r < kPanel; ++r) to[c * kPanel + r] = 0;
  }
}

void TransposeBack(const float* from, int64_t rows, int64_t columns, ops::Accumulate accumulate, float* to,
                   int64_t stride) {
  const bool add = accumulate == ops::Accumulate::kAdd;
  ForSquares(rows, columns, [&](int64_t r, int64_t c) HWY_ATTR {
    const Square square(from + c * kPanel + r, kPanel);
    for (int i = 0; i < Square::kSide; ++i) {
      float* out = to + (r + i) * stride + c;
      float values[Square::kSide];
      square.Store(i, values);
      for (int j = 0; j < Square::kSide; ++j) out[j] = values[j] + (add ? out[j] : 0.0f);
    }
  });
  const int64_t whole_rows = rows / Square::kSide * Square::kSide,
                whole_columns = columns / Square::kSide * Square::kSide;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = to + r * stride;
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      out[c] = from[c * kPanel + r] + (add ? out[c] : 0.0f);
  }
}
