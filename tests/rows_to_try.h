// What tests that repeat themselves spare the sanitizers, which take many times as long: ThreadSanitizer looks for
// races, and rows are the same threads with other numbers; AddressSanitizer looks for addresses, and has half of the
// rows. Every other build tries all.
#pragma once

#include <cstddef>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHOAL_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SHOAL_ADDRESS_SANITIZER
#endif

namespace shoal {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
#if defined(SHOAL_ADDRESS_SANITIZER)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// All rows; under ThreadSanitizer the first and the last, under AddressSanitizer every other one and the last.
template <typename T>
std::vector<T> RowsToTry(std::vector<T> rows) {
  std::vector<T> some;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool end = i == 0 || i + 1 == rows.size();
    if (end || !(kThreadSanitizer || (kAddressSanitizer && i % 2 != 0))) some.push_back(rows[i]);
  }
  return some;
}

}  // namespace shoal
