#include "runtime/data/images/jpeg.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <string>

// jpeglib.h needs size_t and FILE before it.
#include <jerror.h>
#include <jpeglib.h>

#include "absl/strings/str_cat.h"
#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

struct ErrorTrap {
  jpeg_error_mgr manager;  // first: libjpeg's pointer to it is a pointer to the trap
  jmp_buf escape;
  char message[JMSG_LENGTH_MAX] = {};
};

[[noreturn]] void Escape(j_common_ptr info) {
  auto* trap = reinterpret_cast<ErrorTrap*>(info->err);
  info->err->format_message(info, trap->message);
  longjmp(trap->escape, 1);
}

// libjpeg invents pixels after these and calls it a warning; an unknown colour marker or extra bytes harm nothing.
bool LosesPixels(int code) {
  switch (code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_BOGUS_PROGRESSION:
      return true;
    default:
      return false;
  }
}

void OnMessage(j_common_ptr info, int level) {
  if (level < 0 && LosesPixels(info->err->msg_code)) Escape(info);
}

void Ignore(j_common_ptr /*info*/) {}

void SetTrap(ErrorTrap& trap) {
  jpeg_std_error(&trap.manager);
  trap.manager.error_exit = Escape;
  trap.manager.emit_message = OnMessage;
  trap.manager.output_message = Ignore;
}

absl::Status Damaged(const ErrorTrap& trap) {
  return absl::DataLossError(absl::StrCat("damaged JPEG: ", trap.message));
}

int ScaleDenominator(double least_scale) {
  for (const int denominator : {8, 4, 2}) {
    if (least_scale * denominator <= 1) return denominator;
  }
  return 1;
}

// Adobe's files, nearly all of them, hold inverted ink.
void CmykToRgb(const Image& cmyk, bool inverted, Image& rgb) {
  rgb.Reshape({cmyk.width(), cmyk.height(), 3});
  const uint8_t* in = cmyk.data();
  uint8_t* out = rgb.data();
  for (int64_t i = 0; i < int64_t{cmyk.width()} * cmyk.height(); ++i, in += 4, out += 3) {
    const int black = inverted ? in[3] : 255 - in[3];
    for (int c = 0; c < 3; ++c) out[c] = static_cast<uint8_t>(((inverted ? in[c] : 255 - in[c]) * black + 127) / 255);
  }
}

enum class Ink : uint8_t { kNone, kPlain, kInverted };

// Nothing with a destructor may live in a function that setjmp returns to.
bool Decompress(jpeg_decompress_struct& jpeg, ErrorTrap& trap, absl::string_view bytes, int channels,
                double least_scale, Image& pixels, Ink& ink) {
  if (setjmp(trap.escape) != 0) return false;
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&jpeg, TRUE);
  const bool cmyk = jpeg.num_components == 4;
  if (cmyk) ink = jpeg.saw_Adobe_marker ? Ink::kInverted : Ink::kPlain;
  jpeg.out_color_space = cmyk ? JCS_CMYK : channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg.scale_num = 1;
  jpeg.scale_denom = static_cast<unsigned>(ScaleDenominator(least_scale));
  jpeg.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&jpeg);
  pixels.Reshape({static_cast<int>(jpeg.output_width), static_cast<int>(jpeg.output_height), jpeg.output_components});
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = pixels.Row(static_cast<int>(jpeg.output_scanline));
    jpeg_read_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_decompress(&jpeg);
  return true;
}

bool Compress(jpeg_compress_struct& jpeg, ErrorTrap& trap, const ImageView& image, int quality, unsigned char** memory,
              unsigned long* size) {  // NOLINT(google-runtime-int): libjpeg's type
  if (setjmp(trap.escape) != 0) return false;
  jpeg_create_compress(&jpeg);
  jpeg_mem_dest(&jpeg, memory, size);
  jpeg.image_width = static_cast<JDIMENSION>(image.width);
  jpeg.image_height = static_cast<JDIMENSION>(image.height);
  jpeg.input_components = image.channels;
  jpeg.in_color_space = image.channels == 1 ? JCS_GRAYSCALE : image.channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, quality, TRUE);
  jpeg_start_compress(&jpeg, TRUE);
  for (int y = 0; y < image.height; ++y) {
    JSAMPROW row = const_cast<JSAMPROW>(image.Row(y));
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  return true;
}

}  // namespace

absl::Status DecodeJpeg(absl::string_view bytes, int channels, double least_scale, Image& wide, Image& out) {
  jpeg_decompress_struct jpeg = {};
  ErrorTrap trap;
  SetTrap(trap);
  jpeg.err = &trap.manager;
  Ink ink = Ink::kNone;
  const bool done = Decompress(jpeg, trap, bytes, channels, least_scale, out, ink);
  jpeg_destroy_decompress(&jpeg);
  if (!done) return Damaged(trap);
  if (ink == Ink::kNone) return absl::OkStatus();
  CmykToRgb(out, ink == Ink::kInverted, wide);
  ConvertChannels(wide.view(), channels, out);
  return absl::OkStatus();
}

absl::Status EncodeJpeg(const ImageView& image, int quality, std::string& bytes) {
  jpeg_compress_struct jpeg = {};
  ErrorTrap trap;
  SetTrap(trap);
  jpeg.err = &trap.manager;
  unsigned char* memory = nullptr;
  unsigned long size = 0;  // NOLINT(google-runtime-int): libjpeg's type
  const bool done = Compress(jpeg, trap, image, quality, &memory, &size);
  jpeg_destroy_compress(&jpeg);
  if (done) bytes.assign(reinterpret_cast<const char*>(memory), size);
  std::free(memory);
  return done ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write a JPEG: ", trap.message));
}

#define SHOAL_TEXT_INNER(x) #x
#define SHOAL_TEXT(x) SHOAL_TEXT_INNER(x)
std::string JpegLibrary() {
#ifdef LIBJPEG_TURBO_VERSION
  return "libjpeg-turbo " SHOAL_TEXT(LIBJPEG_TURBO_VERSION);
#else
  return absl::StrCat("libjpeg ", JPEG_LIB_VERSION);
#endif
}

}  // namespace shoal
