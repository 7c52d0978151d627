// libFuzzer target: the readers of IDX files and of image headers, chosen by the first byte.
#include <cstddef>
#include <cstdint>

#include "runtime/data/images/idx_dataset.h"
#include "runtime/data/images/image_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0)
    shoal::ParseIdx(bytes, 1 + 2 * (data[0] / 2 % 2)).IgnoreError();
  else
    shoal::ParseImageHeader(bytes).IgnoreError();
  return 0;
}
