#include "runtime/data/images/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/data/images/jpeg.h"
#include "runtime/data/images/png.h"

namespace shoal {
namespace {

constexpr char kPngMagic[] = "\x89PNG\r\n\x1a\n";
constexpr int64_t kMostPixels = int64_t{1} << 28, kLongestSide = 65535;

bool IsPng(absl::string_view bytes) { return absl::StartsWith(bytes, absl::string_view(kPngMagic, 8)); }
bool IsJpeg(absl::string_view bytes) { return absl::StartsWith(bytes, "\xff\xd8\xff"); }

uint32_t BigEndian(absl::string_view bytes, size_t at, int count) {
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

absl::StatusOr<ImageShape> Checked(uint32_t width, uint32_t height, int channels) {
  if (width == 0 || height == 0 || width > kLongestSide || height > kLongestSide ||
      int64_t{width} * height > kMostPixels) {
    return absl::DataLossError(absl::StrCat("its header gives ", width, " x ", height,
                                            " pixels; it takes 1 to 65535 a side, and 2^28 together"));
  }
  return ImageShape{static_cast<int>(width), static_cast<int>(height), channels};
}

absl::Status NeedsMore() { return absl::OutOfRangeError("the header is truncated"); }

absl::StatusOr<ImageShape> ParsePng(absl::string_view bytes) {
  if (bytes.size() < 26) return NeedsMore();
  if (bytes.substr(12, 4) != "IHDR") return absl::DataLossError("damaged PNG: it does not begin with IHDR");
  constexpr int kChannels[] = {1, 0, 3, 3, 2, 0, 4};  // by colour type; 3 is the palette
  const auto type = static_cast<uint8_t>(bytes[25]);
  if (type > 6 || kChannels[type] == 0) return absl::DataLossError(absl::StrCat("damaged PNG: colour type ", type));
  return Checked(BigEndian(bytes, 16, 4), BigEndian(bytes, 20, 4), kChannels[type]);
}

// Walks from marker to marker up to the frame header.
absl::StatusOr<ImageShape> ParseJpeg(absl::string_view bytes) {
  size_t at = 2;
  for (;;) {
    if (at + 4 > bytes.size()) return NeedsMore();
    if (bytes[at] != '\xff') return absl::DataLossError("damaged JPEG: no marker where one must stand");
    const auto marker = static_cast<uint8_t>(bytes[at + 1]);
    if (marker == 0xff) {  // a fill byte
      ++at;
      continue;
    }
    if (marker == 0xd9 || marker == 0xda) return absl::DataLossError("damaged JPEG: it has no frame header");
    const uint32_t length = BigEndian(bytes, at + 2, 2);
    if (length < 2) return absl::DataLossError("damaged JPEG: a segment without length");
    // C0..CF are frame headers but for the tables and the extension among them.
    if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
      if (at + 10 > bytes.size()) return NeedsMore();
      const int channels = static_cast<uint8_t>(bytes[at + 9]);
      if (channels != 1 && channels != 3 && channels != 4)
        return absl::DataLossError(absl::StrCat("damaged JPEG: ", channels, " components"));
      return Checked(BigEndian(bytes, at + 7, 2), BigEndian(bytes, at + 5, 2), channels);
    }
    at += 2 + length;
  }
}

// -1 and errno on error.
int64_t ReadUpTo(int fd, char* to, int64_t count) {
  int64_t have = 0;
  while (have < count) {
    const ssize_t n = ::read(fd, to + have, static_cast<size_t>(count - have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    have += n;
  }
  return have;
}

enum class HowMuch : uint8_t { kBeginning, kAll };

absl::Status ReadFile(const std::string& path, HowMuch how_much, std::string& to) {
  constexpr int64_t kBeginning = 4096;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT || errno == EACCES ? absl::NotFoundError(message) : EnvironmentError(message);
  }
  struct stat info;
  int64_t size = ::fstat(fd, &info) == 0 ? info.st_size : 0;
  if (how_much == HowMuch::kBeginning) size = std::min(size, kBeginning);
  to.resize(static_cast<size_t>(size));
  const int64_t have = ReadUpTo(fd, to.data(), size);
  const int error = errno;
  ::close(fd);
  if (have < 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(error));
    return error == EISDIR ? absl::DataLossError(message) : EnvironmentError(message);
  }
  to.resize(static_cast<size_t>(have));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ImageShape> ParseImageHeader(absl::string_view bytes) {
  if (IsPng(bytes)) return ParsePng(bytes);
  if (IsJpeg(bytes)) return ParseJpeg(bytes);
  return absl::DataLossError(bytes.empty() ? "the file is empty" : "neither a JPEG nor a PNG by its first bytes");
}

absl::StatusOr<ImageShape> ReadImageHeader(const std::string& path) {
  std::string bytes;
  SHOAL_RETURN_IF_ERROR(ReadFile(path, HowMuch::kBeginning, bytes));
  auto shape = ParseImageHeader(bytes);
  // Camera files carry previews and profiles before the frame.
  if (absl::IsOutOfRange(shape.status())) {
    SHOAL_RETURN_IF_ERROR(ReadFile(path, HowMuch::kAll, bytes));
    shape = ParseImageHeader(bytes);
  }
  if (!shape.ok()) return absl::DataLossError(absl::StrCat(path, ": ", shape.status().message()));
  return shape;
}

absl::Status ReadWholeFile(const std::string& path, std::string& to) { return ReadFile(path, HowMuch::kAll, to); }

absl::Status DecodeImageFile(absl::string_view bytes, int channels, double least_scale, Image& wide, Image& out) {
  const auto shape = ParseImageHeader(bytes);
  if (!shape.ok()) return absl::DataLossError(shape.status().message());
  return IsPng(bytes) ? DecodePng(bytes, channels, wide, out) : DecodeJpeg(bytes, channels, least_scale, wide, out);
}

void ConvertChannels(const ImageView& in, int channels, Image& out) {
  out.Reshape({in.width, in.height, channels});
  for (int y = 0; y < in.height; ++y) {
    const uint8_t* from = in.Row(y);
    uint8_t* to = out.Row(y);
    if (channels == in.channels) {
      std::memcpy(to, from, static_cast<size_t>(in.width) * channels);
    } else if (channels == 1) {
      for (int x = 0; x < in.width; ++x) to[x] = Luma(from[3 * x], from[3 * x + 1], from[3 * x + 2]);
    } else {
      for (int x = 0; x < in.width; ++x) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = from[x];
    }
  }
}

}  // namespace shoal
