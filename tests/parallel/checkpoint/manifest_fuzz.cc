// libFuzzer target: the reader of manifest.json.
#include <cstddef>
#include <cstdint>

#include "parallel/checkpoint/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto manifest = shoal::ParseManifest(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (manifest.ok() && !shoal::ParseManifest(shoal::ManifestText(*manifest)).ok()) __builtin_trap();
  return 0;
}
