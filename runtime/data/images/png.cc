#include "runtime/data/images/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

struct PngStream {
  absl::string_view left;  // to read
  std::string* written = nullptr;
  char message[160] = {};
};

[[noreturn]] void OnError(png_structp png, png_const_charp message) {
  auto* stream = static_cast<PngStream*>(png_get_error_ptr(png));
  std::strncpy(stream->message, message, sizeof(stream->message) - 1);
  png_longjmp(png, 1);
}

void OnWarning(png_structp /*png*/, png_const_charp /*message*/) {}

void OnRead(png_structp png, png_bytep to, size_t count) {
  auto* stream = static_cast<PngStream*>(png_get_io_ptr(png));
  if (stream->left.size() < count) png_error(png, "the file is truncated");
  std::memcpy(to, stream->left.data(), count);
  stream->left.remove_prefix(count);
}

void OnWrite(png_structp png, png_bytep from, size_t count) {
  static_cast<PngStream*>(png_get_io_ptr(png))->written->append(reinterpret_cast<const char*>(from), count);
}

void OnFlush(png_structp /*png*/) {}

// Nothing with a destructor may live in a function that setjmp returns to.
bool Read(png_structp png, png_infop info, PngStream& stream, Image& pixels) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  png_set_read_fn(png, &stream, OnRead);
  png_read_info(png, info);
  png_set_scale_16(png);
  png_set_strip_alpha(png);
  png_set_packing(png);
  const int color = png_get_color_type(png, info);
  if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (color == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) < 8) png_set_expand_gray_1_2_4_to_8(png);
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, info);
  pixels.Reshape({static_cast<int>(png_get_image_width(png, info)), static_cast<int>(png_get_image_height(png, info)),
                  static_cast<int>(png_get_channels(png, info))});
  if (png_get_rowbytes(png, info) != static_cast<size_t>(pixels.width()) * pixels.channels()) {
    png_error(png, "rows of an unexpected length");
  }
  for (int pass = 0; pass < passes; ++pass) {
    for (int y = 0; y < pixels.height(); ++y) png_read_row(png, pixels.Row(y), nullptr);
  }
  png_read_end(png, nullptr);
  return true;
}

bool Write(png_structp png, png_infop info, PngStream& stream, const ImageView& image) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  constexpr int kColors[] = {PNG_COLOR_TYPE_GRAY, PNG_COLOR_TYPE_GRAY_ALPHA, PNG_COLOR_TYPE_RGB,
                             PNG_COLOR_TYPE_RGB_ALPHA};
  png_set_write_fn(png, &stream, OnWrite, OnFlush);
  png_set_IHDR(png, info, static_cast<png_uint_32>(image.width), static_cast<png_uint_32>(image.height), 8,
               kColors[image.channels - 1], PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (int y = 0; y < image.height; ++y) png_write_row(png, image.Row(y));
  png_write_end(png, nullptr);
  return true;
}

}  // namespace

absl::Status DecodePng(absl::string_view bytes, int channels, Image& wide, Image& out) {
  PngStream stream{.left = bytes};
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &stream, OnError, OnWarning);
  if (png == nullptr) return absl::ResourceExhaustedError("libpng cannot start: out of memory");
  png_infop info = png_create_info_struct(png);
  const bool done = Read(png, info, stream, wide);
  png_destroy_read_struct(&png, &info, nullptr);
  if (!done) return absl::DataLossError(absl::StrCat("damaged PNG: ", stream.message));
  ConvertChannels(wide.view(), channels, out);
  return absl::OkStatus();
}

absl::Status EncodePng(const ImageView& image, std::string& bytes) {
  bytes.clear();
  PngStream stream{.left = {}, .written = &bytes};
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &stream, OnError, OnWarning);
  if (png == nullptr) return absl::ResourceExhaustedError("libpng cannot start: out of memory");
  png_infop info = png_create_info_struct(png);
  const bool done = Write(png, info, stream, image);
  png_destroy_write_struct(&png, &info);
  return done ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write a PNG: ", stream.message));
}

std::string PngLibrary() { return absl::StrCat("libpng ", png_get_libpng_ver(nullptr)); }

}  // namespace shoal
