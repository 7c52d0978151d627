// JPEG and PNG files: headers by a parser of our own, pixels by libjpeg-turbo and libpng (jpeg.cc, png.cc). The format
// is told by content, not by name.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/data/images/image.h"

namespace shoal {

// Width, height and channels as stored (a palette counts as colour: 3). `bytes` is the file or its beginning.
// OutOfRange: the header goes on behind `bytes`. DataLoss: not an image, or damaged.
absl::StatusOr<ImageShape> ParseImageHeader(absl::string_view bytes);

// The same from a file, of which no more than the header is read. The error names the path.
absl::StatusOr<ImageShape> ReadImageHeader(const std::string& path);

// The whole file into `to`, whose memory is used again. NotFound, or EnvironmentError for a disk's error.
absl::Status ReadWholeFile(const std::string& path, std::string& to);

// See ImageDataset::Decode for `least_scale`. EXIF rotation is ignored, as torchvision's ImageFolder does. DataLoss on
// any damage that leaves pixels undefined, so a truncated file is an error and not a grey area.
absl::Status DecodeImageFile(absl::string_view bytes, int channels, double least_scale, Image& wide, Image& out);

// Rec. 601 luma in Pillow's fixed point.
inline uint8_t Luma(int red, int green, int blue) {
  return static_cast<uint8_t>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}
// Copies pixels and turns 3 channels to 1 or 1 to 3; equal numbers are a plain copy. `out` != the view's image.
void ConvertChannels(const ImageView& in, int channels, Image& out);

}  // namespace shoal
