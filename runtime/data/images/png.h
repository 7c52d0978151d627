// The only file that speaks to libpng: its longjmp ends here.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/data/images/image.h"

namespace shoal {

// Decodes into 1 or 3 channels of 8 bits. Palettes are expanded, 16 bits rounded to 8, alpha dropped, gamma ignored.
absl::Status DecodePng(absl::string_view bytes, int channels, Image& wide, Image& out);

// For tests: 1 to 4 channels.
absl::Status EncodePng(const ImageView& image, std::string& bytes);

// "libpng 1.6.39": what this program runs with.
std::string PngLibrary();

}  // namespace shoal
