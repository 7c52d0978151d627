// libFuzzer target: the reader of .idx files.
#include <cstddef>
#include <cstdint>

#include "runtime/data/indexed_dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The first bytes say how long the .bin beside it claims to be.
  if (size < 4) return 0;
  const int64_t bin = data[0] | data[1] << 8;
  shoal::ParseIndex({reinterpret_cast<const char*>(data) + 2, size - 2}, bin).IgnoreError();
  return 0;
}
