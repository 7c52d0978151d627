// Levels spelled as words of rANS: what is read is what was spelled, and every dispatch target spells the same.
#include "comm/codec/spelling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/base/rng.h"
#include "tests/dispatch_targets.h"

namespace shoal {
namespace {

constexpr int64_t kSpelledGroups = 200;

// Normal ones of a width, and some that lie far outside of their class.
std::vector<int16_t> LevelsOf(double width, bool outliers) {
  const Rng rng({7, RngPurpose::kTest, 0});
  std::vector<int16_t> levels;
  for (uint64_t i = 0; i < kSpelledGroups * kLevelGroup; ++i) {
    const double level = width * static_cast<double>(rng.Normal(1, i)) * (outliers && i % 97 == 0 ? 30 : 1);
    levels.push_back(static_cast<int16_t>(std::lround(std::clamp<double>(level, -kMostLevel, kMostLevel))));
  }
  return levels;
}

std::vector<uint8_t> ClassesOf(const std::vector<int16_t>& levels) {
  std::vector<uint8_t> classes;
  for (size_t first = 0; first < levels.size(); first += kLevelGroup) {
    uint32_t sum = 0;
    for (size_t i = first; i < first + kLevelGroup; ++i) sum += static_cast<uint32_t>(std::abs(levels[i]));
    classes.push_back(static_cast<uint8_t>(LevelClassOf(sum)));
  }
  return classes;
}

// All groups but the last, of which 19 levels are spelled.
TEST(Spelling, IsReadBackAndTheSameOnAllTargets) {
  constexpr int kRest = 19;
  for (const double width : {0.02, 0.5, 2.0, 20.0, 300.0, 9000.0}) {
    for (const bool outliers : {false, true}) {
      const std::vector<int16_t> levels = LevelsOf(width, outliers);
      const std::vector<uint8_t> classes = ClassesOf(levels);
      const int64_t whole = kSpelledGroups - 1, spelled = whole * kLevelGroup + kRest;
      const LevelClass& last = LevelClasses()[classes.back()];
      std::vector<uint16_t> first_target;
      OnEachDispatchTarget([&] {
        std::vector<uint32_t> states(kRansStates, kRansLeast);
        std::vector<uint16_t> words(2 * levels.size() + kSpellingSpare);
        RansWriter writer{words.data()};
        SpellGroup(&levels[static_cast<size_t>(whole * kLevelGroup)], kRest, last, states.data(), writer);
        SpellGroups(levels.data(), classes.data(), whole, states.data(), writer);
        words.resize(static_cast<size_t>(writer.at - words.data()));
        std::reverse(words.begin(), words.end());
        const auto count = words.size();
        words.resize(count + kSpellingSpare);
        RansReader reader{reinterpret_cast<const uint8_t*>(words.data())};
        std::vector<int16_t> read(static_cast<size_t>(spelled));
        ReadGroups(reader, classes.data(), whole, states.data(), read.data());
        ReadGroup(reader, kRest, last, states.data(), &read[static_cast<size_t>(whole * kLevelGroup)]);
        EXPECT_TRUE(std::equal(read.begin(), read.end(), levels.begin())) << width;
        EXPECT_EQ(reader.at, reinterpret_cast<const uint8_t*>(words.data() + count)) << width;
        EXPECT_EQ(states, std::vector<uint32_t>(kRansStates, kRansLeast)) << width;
        if (first_target.empty()) first_target = words;
        EXPECT_EQ(words, first_target) << width;
      });
    }
  }
}

}  // namespace
}  // namespace shoal
