#include "runtime/base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace shoal {
namespace {

TEST(Rng, IsAFunctionOfItsKeyAndCounterOnly) {
  const RngKey key{7, RngPurpose::kDropout, NameHash("blocks.0.mlp"), 2};
  const Rng a(key), b(key);
  b.Uniform(1, 2);
  EXPECT_EQ(a.Words(5, 6), b.Words(5, 6));
  for (RngKey other :
       {RngKey{8, key.purpose, key.name, key.pass}, RngKey{7, RngPurpose::kInit, key.name, key.pass},
        RngKey{7, key.purpose, NameHash("blocks.1.mlp"), key.pass}, RngKey{7, key.purpose, key.name, 3}}) {
    EXPECT_NE(Rng(other).Words(5, 6), a.Words(5, 6));
  }
  EXPECT_NE(a.Words(5, 6), a.Words(6, 5));
}

TEST(Rng, UniformAndNormalHaveTheirMoments) {
  const Rng rng({1, RngPurpose::kTest, NameHash("moments"), 0});
  double sum = 0, squares = 0, normal = 0, normal_squares = 0;
  constexpr int kN = 200000;
  for (int i = 0; i < kN; ++i) {
    const double u = rng.Uniform(i, 0), z = rng.Normal(i, 1);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
    normal += z;
    normal_squares += z * z;
  }
  EXPECT_NEAR(sum / kN, 0.5, 0.003);
  EXPECT_NEAR(squares / kN, 1.0 / 3, 0.003);
  EXPECT_NEAR(normal / kN, 0, 0.01);
  EXPECT_NEAR(normal_squares / kN, 1, 0.02);
}

TEST(NameHash, HasNoCollisionsAmongAModelsNames) {
  std::set<uint64_t> hashes;
  for (int layer = 0; layer < 1000; ++layer) {
    for (const char* part : {"attention.q.weight", "attention.k.weight", "mlp.up.weight", "mlp.down.bias"}) {
      hashes.insert(NameHash("blocks." + std::to_string(layer) + "." + part));
    }
  }
  EXPECT_EQ(hashes.size(), 4000u);
}

TEST(TokenCounter, SeparatesSamplesAndTokens) {
  std::set<uint64_t> counters;
  for (int64_t sample : {int64_t{0}, int64_t{1}, int64_t{1} << 35}) {
    for (int64_t token = 0; token < 100; ++token) counters.insert(TokenCounter(sample, token));
  }
  EXPECT_EQ(counters.size(), 300u);
}

}  // namespace
}  // namespace shoal
