// What tests that repeat themselves spare ThreadSanitizer, which takes many times as long and looks for races: the same
// threads with other numbers. Every other build tries all.
#pragma once

#include <vector>

namespace shoal {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// All rows; under ThreadSanitizer the first and the last.
template <typename T>
std::vector<T> RowsToTry(std::vector<T> rows) {
  if (kThreadSanitizer && rows.size() > 2) rows.erase(rows.begin() + 1, rows.end() - 1);
  return rows;
}

}  // namespace shoal
