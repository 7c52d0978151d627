// libFuzzer target: the reader of safetensors headers.
#include <cstddef>
#include <cstdint>

#include "parallel/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  shoal::ParseSafetensorsHeader({reinterpret_cast<const char*>(data), size}).IgnoreError();
  return 0;
}
