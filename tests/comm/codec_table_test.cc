// The codec table: every registered codec x sizes x contents, against what its header promises.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/codec/codec.h"
#include "comm/codec/level_model.h"
#include "comm/codec/quantiser_grid.h"
#include "runtime/base/rng.h"
#include "tests/dispatch_targets.h"

namespace shoal {
namespace {

using testing::HasSubstr;

constexpr int64_t kBlock = 64;
constexpr float kHuge = std::numeric_limits<float>::max(), kTiny = std::numeric_limits<float>::denorm_min();

// All that make bytes; of factors power_sgd_test.cc knows more.
std::vector<std::string> AllCodecs() {
  std::vector<std::string> names = {"topk_1"};
  for (const CodecFamily& family : CodecFamilies()) {
    for (const absl::string_view name : family.codecs) {
      if (MakeCodec(name).value()->factor_rank() == 0) names.emplace_back(name);
    }
  }
  return names;
}
bool IsOf(absl::string_view family, absl::string_view codec) {
  for (const CodecFamily& f : CodecFamilies()) {
    if (f.name == family) return std::find(f.codecs.begin(), f.codecs.end(), codec) != f.codecs.end();
  }
  return false;
}

float Normal(uint64_t stream, int64_t i) {
  return Rng({4, RngPurpose::kTest, 7}).Normal(stream, static_cast<uint64_t>(i));
}

struct Content {
  const char* name;
  std::function<float(int64_t)> value;
};
const std::vector<Content>& Contents() {
  static const std::vector<Content> contents = {
      {"normal", [](int64_t i) { return Normal(1, i); }},
      {"heavy tails", [](int64_t i) { return std::pow(Normal(2, i), 5.0F); }},
      {"positive", [](int64_t i) { return 3 + std::abs(Normal(3, i)); }},
      {"equal", [](int64_t) { return -0.7F; }},
      {"zeros", [](int64_t i) { return i % 2 == 0 ? 0.0F : -0.0F; }},
      {"denormals", [](int64_t i) { return kTiny * static_cast<float>(i % 300 - 100); }},
      {"huge", [](int64_t i) { return i % 3 == 0   ? kHuge
                                      : i % 3 == 1 ? -kHuge
                                                   : 0.25F * kHuge; }},
      {"one among zeros", [](int64_t i) { return i % 50 == 7 ? 2.5F : 0.0F; }}};
  return contents;
}

struct Coded {
  Encoded encoded;
  std::vector<uint8_t> code;
  std::vector<float> decoded, left;
};
Coded Code(const Codec& codec, const std::vector<float>& gradient, const std::vector<float>* residual = nullptr,
           const CodecKey& key = {.seed = 3, .tensor = 9, .step = 5}) {
  Coded coded;
  const auto size = static_cast<int64_t>(gradient.size());
  coded.code.assign(static_cast<size_t>(codec.Bytes(size)) + 1, 0xab);
  coded.left.resize(gradient.size());
  coded.encoded = codec.Encode({.gradient = gradient.data(),
                                .residual = residual == nullptr ? nullptr : residual->data(),
                                .residual_scale = 0.5F,
                                .size = size,
                                .left = coded.left.data()},
                               key, coded.code.data());
  EXPECT_EQ(coded.code.back(), 0xab) << codec.name() << " writes behind its code";
  coded.code.pop_back();
  coded.decoded.assign(gradient.size(), 42);
  codec.Decode(coded.code.data(), size, Codec::Into::kOverwrite, coded.decoded.data());
  return coded;
}
std::vector<float> Filled(int64_t size, const Content& content) {
  std::vector<float> x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) x[i] = content.value(i);
  return x;
}
double Squares(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

// The largest error that a codec may leave of each element: where nothing better is known of it, the element itself.
std::vector<double> Bounds(const Codec& codec, const std::vector<float>& x) {
  const std::string name(codec.name());
  std::vector<double> bounds(x.size());
  if (codec.exact() || name == "topk_1") return bounds;
  for (size_t i = 0; i < x.size(); ++i) {
    bounds[i] = std::abs(static_cast<double>(x[i]));
    if (name == "bf16") bounds[i] = bounds[i] / 256 + static_cast<double>(kTiny) * 0x1p16;
  }
  const bool nearest = IsOf("quantise", name);
  if (!nearest && !IsOf("quantise_stochastic", name)) return bounds;
  const int bits = name[1] - '0';
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(x.size(), begin + kBlock);
    const auto [least, most] = std::minmax_element(&x[begin], &x[begin] + (end - begin));
    const double range = static_cast<double>(*most) - static_cast<double>(*least);
    const double unit = std::max(static_cast<double>(kTiny), range / ((1 << bits) - (nearest ? 1 : 2)));
    for (size_t i = begin; i < end; ++i) {
      // A code may not be infinite: at the end of the range the next level below stands in.
      const double steps = nearest && std::abs(x[i]) != kHuge ? 0.5 : 1;
      bounds[i] = unit * steps * (1 + 1e-5) + bounds[i] * 1e-6 + static_cast<double>(kTiny);
    }
  }
  return bounds;
}

TEST(CodecTable, RoundTripsWithinBoundsAndLeavesTheRest) {
  OnEachDispatchTarget([] {
    for (const std::string& name : AllCodecs()) {
      const auto codec = MakeCodec(name, kBlock).value();
      EXPECT_EQ(codec->name(), name);
      for (const Content& content : Contents()) {
        for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{8}, kBlock - 1, kBlock, kBlock + 1,
                                   3 * kBlock + 5, int64_t{20011}}) {
          SCOPED_TRACE(absl::StrCat(name, ", ", content.name, ", ", size, " elements"));
          const std::vector<float> x = Filled(size, content);
          const Coded coded = Code(*codec, x);
          EXPECT_TRUE(coded.encoded.finite);
          const std::vector<double> bounds = Bounds(*codec, x);
          for (size_t i = 0; i < x.size(); ++i) {
            ASSERT_EQ(coded.left[i], x[i] - coded.decoded[i]) << i;
            ASSERT_LE(std::abs(static_cast<double>(x[i]) - static_cast<double>(coded.decoded[i])), bounds[i])
                << i << ": " << x[i];
            if (x[i] == 0) {
              ASSERT_EQ(coded.decoded[i], 0) << i;
            }
          }
          EXPECT_NEAR(coded.encoded.squares, Squares(x), 1e-12 * Squares(x));
          EXPECT_NEAR(coded.encoded.error_squares, Squares(coded.left), 1e-12 * Squares(coded.left));
          if (codec->exact()) {
            EXPECT_EQ(coded.encoded.error_squares, 0);
          }
          // Adding to what is there.
          std::vector<float> sum(x.size(), 0.25F);
          codec->Decode(coded.code.data(), size, Codec::Into::kAdd, sum.data());
          for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(sum[i], 0.25F + coded.decoded[i]) << i;
        }
      }
    }
  });
}

TEST(CodecTable, TargetsGiveTheSameBytesAndSums) {
  for (const std::string& name : AllCodecs()) {
    const auto codec = MakeCodec(name, kBlock).value();
    std::vector<Coded> all;
    const std::vector<float> x = Filled(5003, Contents()[1]), e = Filled(5003, Contents()[0]);
    OnEachDispatchTarget([&] { all.push_back(Code(*codec, x, &e)); });
    for (const Coded& coded : all) {
      EXPECT_EQ(coded.code, all[0].code) << name;
      EXPECT_EQ(coded.left, all[0].left) << name;
      EXPECT_EQ(coded.decoded, all[0].decoded) << name;
      EXPECT_EQ(coded.encoded.squares, all[0].encoded.squares) << name;
      EXPECT_EQ(coded.encoded.error_squares, all[0].encoded.error_squares) << name;
    }
  }
}

TEST(CodecTable, TheResidualIsAddedAndNotChanged) {
  for (const std::string& name : AllCodecs()) {
    const auto codec = MakeCodec(name, kBlock).value();
    std::vector<float> x = Filled(1000, Contents()[0]), sum(x.size());
    const std::vector<float> e = Filled(1000, Contents()[1]), before = e;
    for (size_t i = 0; i < x.size(); ++i) sum[i] = x[i] + 0.5F * e[i];
    const Coded with = Code(*codec, x, &e), whole = Code(*codec, sum);
    EXPECT_EQ(with.code, whole.code) << name;
    EXPECT_EQ(with.left, whole.left) << name;
    EXPECT_EQ(e, before) << name;
    // In place, and without `left`.
    std::vector<uint8_t> code(with.code.size());
    codec->Encode({.gradient = sum.data(), .size = 1000}, {.seed = 3, .tensor = 9, .step = 5}, code.data());
    EXPECT_EQ(code, with.code) << name;
    codec->Encode({.gradient = x.data(), .residual = e.data(), .residual_scale = 0.5F, .size = 1000, .left = x.data()},
                  {.seed = 3, .tensor = 9, .step = 5}, code.data());
    EXPECT_EQ(code, with.code) << name;
    EXPECT_EQ(x, with.left) << name;
  }
}

TEST(CodecTable, WhatIsNotFiniteIsTold) {
  for (const std::string& name : AllCodecs()) {
    const auto codec = MakeCodec(name, kBlock).value();
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      std::vector<float> x = Filled(3 * kBlock, Contents()[0]);
      x[kBlock + 3] = bad;
      const Coded coded = Code(*codec, x);
      EXPECT_FALSE(coded.encoded.finite) << name;
      int64_t infinite = 0;
      for (const float d : coded.decoded) infinite += std::isfinite(d) ? 0 : 1;
      EXPECT_EQ(infinite, std::min(codec->block(), 3 * kBlock)) << name << " of " << bad;
    }
  }
}

// A code is one of the two levels beside x, u apart: of what it draws the variance is (x - low) (high - x), and the
// mean over keys lies within five deviations of x. Nothing is left to it but what floats round.
TEST(CodecTable, StochasticRoundingIsUnbiased) {
  constexpr int kKeys = 100000, kSize = 12;
  const std::vector<float> x = Filled(kSize, Contents()[0]);
  const auto [least, most] = std::minmax_element(x.begin(), x.end());
  const double range = static_cast<double>(*most) - static_cast<double>(*least);
  for (int bits = 2; bits <= 8; ++bits) {
    const auto codec = MakeCodec(absl::StrCat("q", bits, "_stochastic"), kBlock).value();
    const double unit = range / ((1 << bits) - 2);
    std::vector<double> sum(kSize), low(kSize, kHuge), high(kSize, -kHuge);
    std::vector<uint8_t> code(static_cast<size_t>(codec->Bytes(kSize)));
    std::vector<float> decoded(kSize);
    for (uint32_t step = 0; step < kKeys; ++step) {
      codec->Encode({.gradient = x.data(), .size = kSize}, {.seed = 3, .tensor = 9, .step = step}, code.data());
      codec->Decode(code.data(), kSize, Codec::Into::kOverwrite, decoded.data());
      for (size_t i = 0; i < kSize; ++i) {
        const auto d = static_cast<double>(decoded[i]);
        sum[i] += d;
        low[i] = std::min(low[i], d), high[i] = std::max(high[i], d);
      }
    }
    for (size_t i = 0; i < kSize; ++i) {
      const auto want = static_cast<double>(x[i]), rounding = range * 0x1p-23;
      EXPECT_NEAR(high[i] - low[i], low[i] == high[i] ? 0 : unit, 2 * rounding) << bits << " bits, element " << i;
      // Where one level was all that was seen, the other lies on x's other side.
      if (low[i] == high[i]) (low[i] > want ? low[i] : high[i]) += low[i] > want ? -unit : unit;
      const double deviation = std::sqrt(std::max(0.0, (want - low[i]) * (high[i] - want)) / kKeys);
      EXPECT_NEAR(sum[i] / kKeys, want, 5 * deviation + rounding) << bits << " bits, element " << i;
    }
  }
}

TEST(CodecTable, StochasticRoundingIsKeyed) {
  const std::vector<float> x = Filled(40, Contents()[0]);
  for (const int bits : {2, 4, 8}) {
    const auto codec = MakeCodec(absl::StrCat("q", bits, "_stochastic"), kBlock).value();
    // Another step, rank, point or tensor rounds otherwise; a run that starts later draws what the whole one drew
    // there.
    const auto code = [&](const CodecKey& key) { return Code(*codec, x, nullptr, key).code; };
    const CodecKey key{.seed = 3, .tensor = 9, .step = 5};
    EXPECT_EQ(code(key), code(key));
    for (const CodecKey& other :
         {CodecKey{.seed = 4, .tensor = 9, .step = 5}, CodecKey{.seed = 3, .tensor = 8, .step = 5},
          CodecKey{.seed = 3, .tensor = 9, .step = 6},
          CodecKey{.seed = 3, .tensor = 9, .step = 5, .point = CodecKey::Point::kOwner},
          CodecKey{.seed = 3, .tensor = 9, .step = 5, .rank = 1}}) {
      EXPECT_NE(code(key), code(other));
    }
    std::vector<float> shifted(x.begin() + 5, x.end());
    shifted.push_back(*std::max_element(x.begin(), x.end()));  // so that the range is the same
    shifted.push_back(*std::min_element(x.begin(), x.end()));
    const Coded whole = Code(*codec, x, nullptr, key);
    CodecKey later = key;
    later.first = 5;
    const Coded rest = Code(*codec, shifted, nullptr, later);
    for (size_t i = 5; i < x.size(); ++i) EXPECT_EQ(rest.decoded[i - 5], whole.decoded[i]) << i;
  }
}

TEST(CodecTable, ErrorsOfAllOptionsAreTheirCodesErrors) {
  for (const CodecFamily& family : CodecFamilies()) {
    if (family.errors == nullptr) continue;
    for (const Content& content : {Contents()[0], Contents()[1], Contents()[2]}) {
      const std::vector<float> x = Filled(30000, content), e = Filled(30000, Contents()[0]);
      std::vector<double> errors(family.codecs.size());
      const CodecInput input{.gradient = x.data(), .residual = e.data(), .residual_scale = 0.5F, .size = 30000};
      double squares = 0;
      OnEachDispatchTarget([&] {
        const double first = squares;
        squares = family.errors(input, kBlock, absl::MakeSpan(errors));
        EXPECT_TRUE(first == 0 || first == squares);
      });
      for (size_t i = 0; i < errors.size(); ++i) {
        const Coded coded = Code(*MakeCodec(family.codecs[i], kBlock).value(), x, &e);
        // Of stochastic rounding it is what is expected, and one code is one draw.
        EXPECT_NEAR(errors[i] / coded.encoded.error_squares, 1, family.name == "quantise_stochastic" ? 0.1 : 0.03)
            << family.codecs[i] << ", " << content.name;
        EXPECT_NEAR(squares, coded.encoded.squares, 1e-9 * squares);
      }
    }
  }
}

// research/lgreco.md §3.1: of normal values in blocks of 1024.
TEST(CodecTable, RelativeErrorsAreThePublishedOnes) {
  const std::vector<float> x = Filled(1 << 16, Contents()[0]);
  const std::vector<std::pair<std::string, double>> rows = {
      {"q4", 0.125}, {"q6", 0.030}, {"q8", 0.0074}, {"q6_stochastic", 0.042}, {"q8_stochastic", 0.0104}};
  for (const auto& [name, want] : rows) {
    const Coded coded = Code(*MakeCodec(name).value(), x);
    EXPECT_NEAR(std::sqrt(coded.encoded.error_squares / coded.encoded.squares) / want, 1, 0.06) << name;
  }
}

// Entropy-coded scalar quantisation is within 0.255 bits of the rate-distortion bound of normal values at high rates,
// and below it by less at low ones (Gish and Pierce, 1968).
TEST(CodecTable, EntropyCodesAreNearTheBoundOfScalarOnes) {
  const std::vector<float> x = Filled(1 << 17, Contents()[0]);
  for (const double bits : {1.0, 2.0, 3.0, 4.0, 6.0}) {
    const auto codec = MakeCodec(absl::StrCat("ecsq_", bits)).value();
    const Coded coded = Code(*codec, x);
    const double error = coded.encoded.error_squares / coded.encoded.squares;
    EXPECT_LE(error, std::exp2(-2 * (bits - 0.255 - (bits < 2 ? 0.15 : 0.07)))) << bits;
    EXPECT_GE(error, std::exp2(-2 * bits)) << bits;
    EXPECT_LE(static_cast<double>(codec->Bytes(1 << 17)), (bits / 8 + 0.005) * (1 << 17)) << bits;
  }
}

// The tables are a part of the format: ranks on unlike machines must hold the same.
TEST(CodecTable, EntropyTablesAreTheFormats) {
  uint64_t hash = 0;
  for (int c = 1; c < kLevelClasses; ++c) {
    hash = 31 * hash + static_cast<uint64_t>(LevelClasses()[c].shift);
    for (const uint32_t entry : LevelClasses()[c].table->found) hash = 31 * hash + entry;
  }
  EXPECT_EQ(hash, 18070144983651081626U);
}

// One frame of several that is not finite, or zero, leaves the others as they are.
TEST(CodecTable, EntropyCodesOfFramesStandByThemselves) {
  const auto codec = MakeCodec("ecsq_3").value();
  for (const float bad : {std::nanf(""), INFINITY, 0.0F}) {
    std::vector<float> x = Filled(3 * 32768 + 100, Contents()[0]);
    if (bad == 0) {
      std::fill(x.begin() + 32768, x.begin() + 2 * 32768, 0.0F);
    } else {
      x[40000] = bad;
    }
    const Coded coded = Code(*codec, x);
    EXPECT_EQ(coded.encoded.finite, bad == 0);
    for (size_t i = 0; i < x.size(); ++i) {
      if (i / 32768 != 1) {
        ASSERT_EQ(coded.left[i], x[i] - coded.decoded[i]) << i;
        ASSERT_LT(std::abs(coded.left[i]), 1) << i;
      } else if (bad == 0) {
        ASSERT_EQ(coded.decoded[i], 0) << i;
      } else {
        ASSERT_TRUE(std::isnan(coded.decoded[i])) << i;
      }
    }
  }
}

// Frames of one run share its bits as they need them, whatever a sample of it says.
TEST(CodecTable, EntropyCodesGiveBitsToWhereTheyAreNeeded) {
  constexpr int64_t kSize = 5 * 32768 + 777;
  const std::vector<Content> contents = {
      {"one frame of six is large", [](int64_t i) { return (i / 32768 == 3 ? 100.0F : 1.0F) * Normal(1, i); }},
      {"most rows are zero", [](int64_t i) { return i / 192 % 9 == 0 ? Normal(1, i) : 0.0F; }},
      {"nothing that a sample sees", [](int64_t i) { return i == 40001 || i == 160003 ? 1.0F : 0.0F; }},
      {"all that is large is sampled", [](int64_t i) { return (i / 32 % 10 == 0 ? 10.0F : 0.1F) * Normal(1, i); }},
      {"the last frame is large", [](int64_t i) { return (i >= 5 * 32768 ? 1000.0F : 1.0F) * Normal(1, i); }},
      {"far outliers", [](int64_t i) { return i % 3000 == 5 ? 1e3F : Normal(1, i); }}};
  for (const Content& content : contents) {
    const std::vector<float> x = Filled(kSize, content);
    for (const double bits : {1.0, 3.0}) {
      SCOPED_TRACE(absl::StrCat(content.name, ", ", bits, " bits"));
      const Coded coded = Code(*MakeCodec(absl::StrCat("ecsq_", bits)).value(), x);
      const Coded max_min = Code(*MakeCodec(bits == 1 ? "q2" : "q3").value(), x);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(coded.left[i], x[i] - coded.decoded[i]) << i;
      EXPECT_NEAR(coded.encoded.error_squares, Squares(coded.left), 1e-12 * Squares(x));
      // Half as many bits leave less than max-min quantisation of blocks, or the same bits half as much.
      EXPECT_LE(coded.encoded.error_squares, (bits == 1 ? 1.0 : 0.5) * max_min.encoded.error_squares);
    }
  }
}

TEST(CodecTable, ErrorFeedbackLosesNothing) {
  for (const std::string& name : AllCodecs()) {
    const auto codec = MakeCodec(name, kBlock).value();
    constexpr int kSteps = 1000, kSize = 100;
    std::vector<double> balance(kSize);
    std::vector<float> x(kSize), e(kSize, 0.0F), next(kSize), decoded(kSize);
    std::vector<uint8_t> code(static_cast<size_t>(codec->Bytes(kSize)));
    for (int step = 0; step < kSteps; ++step) {
      for (int i = 0; i < kSize; ++i) balance[i] += x[i] = Normal(static_cast<uint64_t>(step), i);
      codec->Encode({.gradient = x.data(), .residual = e.data(), .size = kSize, .left = next.data()},
                    {.seed = 1, .step = static_cast<uint32_t>(step)}, code.data());
      codec->Decode(code.data(), kSize, Codec::Into::kOverwrite, decoded.data());
      for (int i = 0; i < kSize; ++i) balance[i] -= decoded[i];
      e.swap(next);
    }
    for (int i = 0; i < kSize; ++i) EXPECT_NEAR(balance[i], e[i], 1e-3) << name;
    // Bounded: a few times what one step leaves, or for sparse codes what waits for its turn.
    EXPECT_LT(std::sqrt(Squares(e) / kSize), name[0] == 't' ? 200 : 3) << name;
  }
}

TEST(CodecTable, TopKKeepsTheLargestAndOfEqualOnesTheFirst) {
  const auto codec = MakeCodec("topk_0.3").value();
  const std::vector<float> x = {1, -2, 2, 0.5F, 2, -3, 2, 0, 0, 0};
  EXPECT_EQ(Code(*codec, x).decoded, std::vector<float>({0, -2, 2, 0, 0, -3, 0, 0, 0, 0}));
  EXPECT_EQ(codec->Bytes(10), 3 * 8);
  EXPECT_EQ(codec->Bytes(1), 8);
  EXPECT_EQ(codec->Bytes(0), 0);
}

// Contents of which a sample of groups of 16, one in three, tells little or the wrong thing.
TEST(CodecTable, TopKIsASortsWhateverASampleSays) {
  constexpr int64_t kSize = 200000, kApart = kSize / 4096;
  const std::vector<Content> contents = {
      {"normal", [](int64_t i) { return Normal(1, i); }},
      {"most of what is large is sampled",
       [](int64_t i) { return (i % kApart < 16 && i / kApart % 64 == 0 ? 100.0F : 1.0F) * Normal(1, i); }},
      {"nothing large is sampled", [](int64_t i) { return i % kApart == 20 ? Normal(1, i) : 0.0F; }},
      {"few that are not zero", [](int64_t i) { return i % 500 == 3 ? Normal(1, i) : 0.0F; }},
      {"equal", [](int64_t i) { return i % 2 == 0 ? 0.5F : -0.5F; }}};
  const auto codec = MakeCodec("topk_0.01").value();
  for (const Content& content : contents) {
    SCOPED_TRACE(content.name);
    std::vector<float> x = Filled(kSize, content), left = x;
    std::vector<int64_t> order(kSize);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return std::abs(x[a]) > std::abs(x[b]); });
    std::vector<float> want(kSize), decoded(kSize);
    for (int64_t i = 0; i < kSize / 100; ++i) want[order[i]] = x[order[i]];
    // In place: half of x is the gradient, and the other half the residual.
    for (float& v : left) v /= 2;
    const std::vector<float> residual = left;
    std::vector<uint8_t> code(static_cast<size_t>(codec->Bytes(kSize)));
    const Encoded encoded = codec->Encode(
        {.gradient = left.data(), .residual = residual.data(), .size = kSize, .left = left.data()}, {}, code.data());
    codec->Decode(code.data(), kSize, Codec::Into::kOverwrite, decoded.data());
    EXPECT_EQ(decoded, want);
    for (int64_t i = 0; i < kSize; ++i) ASSERT_EQ(left[i], x[i] - want[i]) << i;
    EXPECT_NEAR(encoded.squares, Squares(x), 1e-12 * Squares(x));
    EXPECT_NEAR(encoded.error_squares, Squares(left), 1e-12 * Squares(left));
  }
}

TEST(CodecTable, UnknownNamesAreToldWithWhatThereIs) {
  for (const char* name : {"", "q1", "q9", "fp8", "topk", "topk_x", "q4_", "ecsq", "ecsq_x"}) {
    const auto codec = MakeCodec(name);
    ASSERT_FALSE(codec.ok()) << name;
    for (const CodecFamily& family : CodecFamilies())
      EXPECT_THAT(std::string(codec.status().message()), HasSubstr(std::string(family.spelling)));
  }
  EXPECT_THAT(std::string(MakeCodec("topk_0").status().message()), HasSubstr("above 0 and is at most 1"));
  EXPECT_THAT(std::string(MakeCodec("topk_1.5").status().message()), HasSubstr("above 0 and is at most 1"));
  EXPECT_THAT(std::string(MakeCodec("ecsq_0.4").status().message()), HasSubstr("from 0.5 to 8"));
  EXPECT_THAT(std::string(MakeCodec("ecsq_9").status().message()), HasSubstr("from 0.5 to 8"));
  for (const char* name : {"powersgd_0", "powersgd_1.5", "powersgd_257", "powersgd_nan"})
    EXPECT_THAT(std::string(MakeCodec(name).status().message()), HasSubstr("whole number from 1 to 256"));
  EXPECT_THAT(std::string(MakeCodec("q4", 100).status().message()), HasSubstr("multiple of 8"));
}

}  // namespace
}  // namespace shoal
