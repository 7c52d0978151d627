#include "comm/codec/level_model.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "comm/codec/kernels.h"

namespace shoal {
namespace {

constexpr int kTables = 15;  // of classes 1..15; wider ones take the last two, without their lowest bits
constexpr double kRounding = kLevelRounding;

// exp(-y), y >= 0, of operations that are exactly defined: (sum of (y / 256)^i / i!)^-256.
double ExpMinus(double y) {
  const double x = y / 256;
  double term = 1, sum = 1;
  for (int i = 1; i < 16; ++i) {
    term = term * x / i;
    sum += term;
  }
  for (int i = 0; i < 8; ++i) sum *= sum;
  return 1 / sum;
}

// P(|t| < at) of p(t) ~ exp(-|t|^1.75).
class Spread {
 public:
  Spread() : below_(kPoints + 1) {
    double last = 1;
    for (int i = 1; i <= kPoints; ++i) {
      const double t = i * kStep, root = std::sqrt(t), density = ExpMinus(t * root * std::sqrt(root));
      below_[i] = below_[i - 1] + (last + density) / 2;
      last = density;
    }
    for (double& p : below_) p /= below_[kPoints];
  }
  double Below(double at) const {
    const double place = at / kStep;
    if (place >= kPoints) return 1;
    const int i = static_cast<int>(place);
    return below_[i] + (place - i) * (below_[i + 1] - below_[i]);
  }

 private:
  static constexpr int kPoints = 16384;
  static constexpr double kStep = 8.0 / kPoints;
  std::vector<double> below_;
};

// 2^(halves / 2), halves >= 0.
double HalfOctaves(int halves) {
  double power = halves % 2 == 0 ? 1 : std::sqrt(2.0);
  for (int i = 0; i < halves / 2; ++i) power *= 2;
  return power;
}

// The width at which levels have the mean magnitude that is asked for.
double WidthOf(const Spread& spread, double mean) {
  double low = mean * 0.1, high = mean * 8 + 4;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (int level = 1; level <= 8 * kReach; ++level) sum += 1 - spread.Below((level - kRounding) / middle);
    (sum < mean ? low : high) = middle;
  }
  return (low + high) / 2;
}

uint16_t CostOf(int frequency) {
  return static_cast<uint16_t>(std::lround(kCostUnit * (kLevelBits - std::log2(static_cast<double>(frequency)))));
}

LevelTable TableOf(const Spread& spread, int level_class) {
  constexpr int kAll = 1 << kLevelBits;
  const double width = WidthOf(spread, HalfOctaves(level_class - 1) / kLevelGroup);
  int frequency[kReach + 1] = {};  // of magnitudes, for one sign
  LevelTable table;
  int rest = kAll;
  double beyond = 1 - spread.Below((1 - kRounding) / width);
  for (int level = 1; level <= kReach; ++level) {
    const double p = (spread.Below((level + 1 - kRounding) / width) - spread.Below((level - kRounding) / width)) / 2;
    if (p * kAll < 0.3) break;
    table.reach = level;
    frequency[level] = std::max(1, static_cast<int>(p * kAll + 0.5));
    rest -= 2 * frequency[level];
    beyond -= 2 * p;
  }
  const int far = std::max(1, static_cast<int>(beyond * kAll + 0.5));
  frequency[0] = rest - far;
  int start = 0;
  const auto add = [&](int symbol, int of) {
    table.symbols[symbol] = RansSymbol::Of(static_cast<uint32_t>(start), static_cast<uint32_t>(of), kLevelBits);
    for (int i = 0; i < of; ++i) table.found[start + i] = static_cast<uint32_t>(symbol << 22 | i << kLevelBits | of);
    start += of;
  };
  for (int level = -table.reach; level <= table.reach; ++level) add(level + kReach, frequency[std::abs(level)]);
  add(kBeyond, far);
  table.cost.fill(static_cast<uint16_t>(CostOf(far) + 2 * kBeyondBits * kCostUnit));
  for (int level = 0; level <= table.reach; ++level) table.cost[level] = CostOf(frequency[level]);
  return table;
}

struct Model {
  std::array<LevelTable, kTables + 1> tables;
  std::array<LevelClass, kLevelClasses> classes;
  Model() {
    const Spread spread;
    for (int c = 1; c <= kTables; ++c) tables[c] = TableOf(spread, c);
    for (int c = 1; c < kLevelClasses; ++c) {
      const int shift = c <= kTables ? 0 : (c - kTables + 1) / 2;
      classes[c] = {&tables[c - 2 * shift], shift};
    }
  }
};

}  // namespace

const LevelClass* LevelClasses() {
  static const Model* const model = new Model;
  return model->classes.data();
}

}  // namespace shoal
