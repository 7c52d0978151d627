#include "runtime/data/images/image_file.h"

#include <gmock/gmock.h>

#include "tests/runtime/data/images/golden.h"
#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

using testing::HasSubstr;

class ImageFileTest : public ImageFolderTest {
 protected:
  absl::Status Decode(absl::string_view bytes, int channels, double least_scale = 1) {
    return DecodeImageFile(bytes, channels, least_scale, wide_, out_);
  }
  Image wide_, out_;
};

TEST_F(ImageFileTest, DecodesAsPillowDoes) {
  std::string bytes;
  int channels = 0, cases = 0;
  for (const GoldenCase& golden : GoldenCases()) {
    if (golden.name == "file") bytes = golden.bytes, channels = golden.shape.channels;
    if (golden.name != "decoded") continue;
    ASSERT_TRUE(Decode(bytes, golden.shape.channels, golden.argument).ok());
    ExpectPixels(out_, golden, 0);
    if (HasFatalFailure()) FAIL() << "file " << cases << " of " << channels << " channels";
    ++cases;
  }
  EXPECT_EQ(cases, 8);
}

TEST_F(ImageFileTest, PngIsExactInEveryNumberOfChannels) {
  for (const int channels : {1, 2, 3, 4}) {
    const Image image = Pattern({13, 9, channels}, 3);
    std::string bytes;
    ASSERT_TRUE(EncodePng(image.view(), bytes).ok());
    EXPECT_EQ(*ParseImageHeader(bytes), image.shape());
    const int kept = channels < 3 ? 1 : 3;
    ASSERT_TRUE(Decode(bytes, kept).ok());
    for (int p = 0; p < 13 * 9; ++p) {
      for (int c = 0; c < kept; ++c) ASSERT_EQ(out_.data()[p * kept + c], image.data()[p * channels + c]) << channels;
    }
  }
}

TEST_F(ImageFileTest, ChannelsAreConverted) {
  const Image colour = Pattern({5, 4, 3}, 1), grey = Pattern({5, 4, 1}, 2);
  std::string bytes;
  ASSERT_TRUE(EncodePng(colour.view(), bytes).ok());
  ASSERT_TRUE(Decode(bytes, 1).ok());
  for (int p = 0; p < 20; ++p) {
    const uint8_t* from = colour.data() + 3 * p;
    EXPECT_NEAR(out_.data()[p], 0.299 * from[0] + 0.587 * from[1] + 0.114 * from[2], 0.51);
  }
  ASSERT_TRUE(EncodePng(grey.view(), bytes).ok());
  ASSERT_TRUE(Decode(bytes, 3).ok());
  for (int i = 0; i < 60; ++i) EXPECT_EQ(out_.data()[i], grey.data()[i / 3]);
}

TEST_F(ImageFileTest, AJpegIsShrunkNoFurtherThanAsked) {
  std::string bytes;
  ASSERT_TRUE(EncodeJpeg(Pattern({37, 23, 3}, 0).view(), 90, bytes).ok());
  EXPECT_EQ(*ParseImageHeader(bytes), (ImageShape{37, 23, 3}));
  for (const auto& [scale, width, height] : {std::tuple{1.0, 37, 23},
                                             {0.51, 37, 23},
                                             {0.5, 19, 12},
                                             {0.3, 19, 12},
                                             {0.25, 10, 6},
                                             {0.125, 5, 3},
                                             {0.001, 5, 3}}) {
    ASSERT_TRUE(Decode(bytes, 3, scale).ok());
    EXPECT_EQ(out_.shape(), (ImageShape{width, height, 3})) << scale;
  }
}

TEST_F(ImageFileTest, EveryTruncatedFileIsAnError) {
  std::string jpeg, png;
  ASSERT_TRUE(EncodeJpeg(Pattern({24, 24, 3}, 0).view(), 80, jpeg).ok());
  ASSERT_TRUE(EncodePng(Pattern({24, 24, 3}, 0).view(), png).ok());
  for (const std::string& whole : {jpeg, png}) {
    ASSERT_TRUE(Decode(whole, 3).ok());
    for (size_t n = 0; n < whole.size(); ++n) {
      const absl::Status status = Decode(absl::string_view(whole).substr(0, n), 3);
      ASSERT_TRUE(absl::IsDataLoss(status)) << n << " of " << whole.size() << " bytes: " << status;
    }
  }
}

TEST_F(ImageFileTest, FlippedBytesNeverCrash) {
  std::string jpeg, png;
  ASSERT_TRUE(EncodeJpeg(Pattern({24, 24, 3}, 0).view(), 80, jpeg).ok());
  ASSERT_TRUE(EncodePng(Pattern({24, 24, 3}, 0).view(), png).ok());
  for (const std::string& whole : {jpeg, png}) {
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string flipped = whole;
      flipped[i] = static_cast<char>(flipped[i] ^ 0x5a);
      const auto header = ParseImageHeader(flipped);
      // A changed size may claim a quarter of a gigabyte; that is refused or allowed elsewhere.
      if (!header.ok() || header->size() > 1 << 20) continue;
      Decode(flipped, 3).IgnoreError();
    }
  }
}

TEST_F(ImageFileTest, HeadersAreReadAndCheckedWithoutDecoding) {
  EXPECT_THAT(std::string(ParseImageHeader("").status().message()), HasSubstr("empty"));
  EXPECT_THAT(std::string(ParseImageHeader("GIF89a..").status().message()), HasSubstr("neither a JPEG nor a PNG"));
  std::string png;
  ASSERT_TRUE(EncodePng(Pattern({3, 3, 1}, 0).view(), png).ok());
  png[16] = 0x40;
  EXPECT_THAT(std::string(ParseImageHeader(png).status().message()), HasSubstr("1073741827 x 3 pixels"));
  png[16] = 0, png[19] = 0;
  EXPECT_THAT(std::string(ParseImageHeader(png).status().message()), HasSubstr("0 x 3 pixels"));
  EXPECT_TRUE(absl::IsOutOfRange(ParseImageHeader(png.substr(0, 20)).status()));
}

TEST_F(ImageFileTest, AHeaderBehindAPreviewIsFound) {
  std::string jpeg;
  ASSERT_TRUE(EncodeJpeg(Pattern({20, 10, 1}, 0).view(), 80, jpeg).ok());
  // 9,000 bytes of application data behind the first marker.
  const std::string preview = std::string("\xff\xe1\x23\x2a", 4) + std::string(9000, 'x');
  Write("camera.jpg", jpeg.substr(0, 2) + preview + jpeg.substr(2));
  const auto shape = ReadImageHeader(Path("camera.jpg"));
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(*shape, (ImageShape{20, 10, 1}));
  EXPECT_TRUE(absl::IsNotFound(ReadImageHeader(Path("none.jpg")).status()));
  Write("text.jpg", "hello");
  EXPECT_THAT(std::string(ReadImageHeader(Path("text.jpg")).status().message()), HasSubstr("text.jpg: neither"));
}

}  // namespace
}  // namespace shoal
