// Levels as words of rANS, and back: the inner loops of entropy-coded quantisation (ecsq.cc), one per dispatch target.
// Integer arithmetic alone: every target writes the same words.
//
// Element i of a group is of state i. A group's words are, in the order in which they are read, those of its symbols,
// then of the halves of levels beyond its table, then of the lowest bits that travel as they are: of each the first
// element's first.
#pragma once

#include <cstdint>

#include "comm/codec/level_model.h"
#include "comm/codec/rans.h"

namespace shoal {

constexpr int kRansStates = kLevelGroup;
constexpr int64_t kSpellingSpare = 16;  // bytes that are read beyond a code's last word, or written beyond it

// Spells whole groups of levels, the last first. `classes` [groups], `states` [kRansStates]. There is room for two
// words a level and kSpellingSpare. What reads them takes the words from the one that was written last to the first.
void SpellGroups(const int16_t* levels, const uint8_t* classes, int64_t groups, uint32_t* states, RansWriter& words);
// The first `count` levels of a group, as SpellGroups would.
void SpellGroup(const int16_t* levels, int count, const LevelClass& of, uint32_t* states, RansWriter& words);

void ReadGroups(RansReader& words, const uint8_t* classes, int64_t groups, uint32_t* states, int16_t* levels);
void ReadGroup(RansReader& words, int count, const LevelClass& of, uint32_t* states, int16_t* levels);

}  // namespace shoal
