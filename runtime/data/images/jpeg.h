// The only file that speaks to libjpeg: its longjmp ends here.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/data/images/image.h"

namespace shoal {

// Decodes into 1 or 3 channels at the smallest of 1, 1/2, 1/4, 1/8 that is at least `least_scale`. The accurate integer
// transform and smooth chroma are used: the same bytes with and without vector instructions. CMYK becomes RGB without
// a colour profile, as in Pillow.
absl::Status DecodeJpeg(absl::string_view bytes, int channels, double least_scale, Image& wide, Image& out);

// For tests and benchmarks.
absl::Status EncodeJpeg(const ImageView& image, int quality, std::string& bytes);

// "libjpeg-turbo 2.1.5": what this program was built with.
std::string JpegLibrary();

}  // namespace shoal
