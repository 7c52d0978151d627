#include "runtime/data/images/image_dataset.h"

#include <gmock/gmock.h>
#include <zlib.h>

#include "runtime/data/images/cifar10_dataset.h"
#include "runtime/data/images/folder_dataset.h"
#include "runtime/data/images/idx_dataset.h"
#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ImageDatasetTest : public ImageFolderTest {
 protected:
  std::string FolderError(const std::string& name) const {
    return std::string(FolderDataset::Open(Path(name), {}).status().message());
  }
  Image Decoded(const ImageDataset& data, int64_t i, int channels) {
    Image image;
    EXPECT_TRUE(data.Decode(i, channels, 1, scratch_, image).ok());
    return image;
  }
  DecodeScratch scratch_;
};

TEST_F(ImageDatasetTest, CifarPlanesBecomePixels) {
  WriteCifar("data_batch_1.bin", 12);
  WriteCifar("data_batch_2.bin", 3, 12);
  Write("batches.meta.txt", "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
  const auto data = *Cifar10Dataset::Open({Path("data_batch_1.bin"), Path("data_batch_2.bin")});
  EXPECT_EQ(data->size(), 15);
  EXPECT_EQ(data->classes()[9], "truck");
  EXPECT_EQ(data->label(13), 3);
  EXPECT_THAT(data->Name(13), HasSubstr("data_batch_2.bin: record 1"));
  const Image image = Decoded(*data, 13, 3);
  EXPECT_EQ(image.shape(), (ImageShape{32, 32, 3}));
  for (int p = 0; p < 1024; ++p) {
    for (int c = 0; c < 3; ++c) ASSERT_EQ(image.data()[3 * p + c], (13 + 1024 * c + p) % 256);
  }
  EXPECT_EQ(Decoded(*data, 13, 1).channels(), 1);
}

TEST_F(ImageDatasetTest, DamagedCifarIsNamed) {
  WriteCifar("a.bin", 4);
  const std::string whole = Slurp("a.bin");
  const auto opened = [&](const std::string& bytes) {
    Write("a.bin", bytes);
    return Cifar10Dataset::Open({Path("a.bin")}).status().ToString();
  };
  EXPECT_EQ(opened(whole), "OK");
  EXPECT_THAT(opened(whole.substr(1)), HasSubstr("12291 bytes long, not a whole number of records"));
  EXPECT_THAT(opened(""), HasSubstr("0 bytes long"));
  std::string wrong = whole;
  wrong[2 * 3073] = 10;
  EXPECT_THAT(opened(wrong), HasSubstr("a.bin: record 2 has label 10"));
  EXPECT_THAT(Cifar10Dataset::Open({Path("b.bin")}).status().ToString(), HasSubstr("NOT_FOUND"));
}

TEST_F(ImageDatasetTest, IdxIsReadPlainAndPacked) {
  WriteIdx("t", 7, 5, 3);
  const auto plain = IdxDataset::Open(Path("t-images-idx3-ubyte"), Path("t-labels-idx1-ubyte"));
  ASSERT_TRUE(plain.ok()) << plain.status();
  const std::string bytes = Slurp("t-images-idx3-ubyte");
  gzFile gz = gzopen(Path("t.gz").c_str(), "wb");
  gzwrite(gz, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(gz);
  const auto packed = IdxDataset::Open(Path("t.gz"), Path("t-labels-idx1-ubyte"));
  ASSERT_TRUE(packed.ok()) << packed.status();
  for (const auto& data : {plain->get(), packed->get()}) {
    EXPECT_EQ(data->size(), 7);
    EXPECT_THAT(data->classes(), ElementsAre("0", "1", "2"));
    EXPECT_EQ(data->label(5), 2);
    const Image image = Decoded(*data, 5, 1);
    EXPECT_EQ(image.shape(), (ImageShape{5, 5, 1}));
    for (int p = 0; p < 25; ++p) EXPECT_EQ(image.data()[p], 5 + p);
  }
  const std::string half = Slurp("t.gz").substr(0, 40);
  Write("t.gz", half);
  EXPECT_THAT(IdxDataset::Open(Path("t.gz"), Path("t-labels-idx1-ubyte")).status().ToString(),
              HasSubstr("t.gz: cannot be unpacked"));
}

TEST_F(ImageDatasetTest, DamagedIdxIsNamed) {
  const std::string whole = IdxBytes({2, 3, 4}, std::string(24, 'x'));
  EXPECT_THAT(ParseIdx(whole, 3)->shape, ElementsAre(2, 3, 4));
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_TRUE(absl::IsDataLoss(ParseIdx(whole.substr(0, n), 3).status()));
  EXPECT_THAT(ParseIdx(whole + "x", 3).status().ToString(), HasSubstr("is 41 bytes long, but its header and 24"));
  EXPECT_THAT(ParseIdx(whole, 1).status().ToString(), HasSubstr("begins with bytes 0 0 8 3"));
  for (const int at : {0, 1, 2, 3, 4, 8, 12}) {
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 0xc1);
    EXPECT_TRUE(absl::IsDataLoss(ParseIdx(flipped, 3).status())) << "byte " << at;
  }
  WriteIdx("a", 6, 3, 4);
  WriteIdx("b", 5, 3, 4);
  EXPECT_THAT(IdxDataset::Open(Path("a-images-idx3-ubyte"), Path("b-labels-idx1-ubyte")).status().ToString(),
              HasSubstr("has 6 images, but"));
  EXPECT_THAT(IdxDataset::Open(Path("a-images-idx3-ubyte"), Path("a-labels-idx1-ubyte"), 3).status().ToString(),
              HasSubstr("label 3 is 3, but the training set's are 0 to 2"));
}

TEST_F(ImageDatasetTest, SortedFolderNamesAreTheClasses) {
  WritePng("d/zebra/b.PNG", Pattern({6, 4, 3}, 1));
  WriteJpeg("d/zebra/sub/a.jpeg", Pattern({8, 8, 3}, 2));
  WriteJpeg("d/ape/x.JPG", Pattern({9, 5, 3}, 3));
  WritePng("d/ape/disguised.jpg", Pattern({2, 2, 3}, 4));
  Write("d/ape/.hidden.jpg", "no image");
  Write("d/ape/notes.txt", "no image");
  Write("d/readme.jpg", "no image");
  const auto data = *FolderDataset::Open(Path("d"), {.threads = 3});
  EXPECT_THAT(data->classes(), ElementsAre("ape", "zebra"));
  ASSERT_EQ(data->size(), 4);
  const std::vector<std::string> names = {"ape/disguised.jpg", "ape/x.JPG", "zebra/b.PNG", "zebra/sub/a.jpeg"};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(data->Name(i), Path("d/" + names[i]));
    EXPECT_EQ(data->label(i), i / 2);
  }
  EXPECT_EQ(data->shape(1), (ImageShape{9, 5, 3}));
  EXPECT_EQ(Pixels(Decoded(*data, 2, 3)), Pixels(Pattern({6, 4, 3}, 1)));
  EXPECT_EQ(Pixels(Decoded(*data, 0, 3)), Pixels(Pattern({2, 2, 3}, 4)));
}

TEST_F(ImageDatasetTest, WhatIsWrongWithAFolderIsNamed) {
  EXPECT_THAT(FolderError("none"), HasSubstr("none: cannot be listed"));
  std::filesystem::create_directories(Path("bare"));
  EXPECT_THAT(FolderError("bare"), HasSubstr("has no class folders"));
  WritePng("d/a/1.png", Pattern({4, 4, 1}, 0));
  std::filesystem::create_directories(Path("d/b"));
  EXPECT_THAT(FolderError("d"), HasSubstr("d/b: the class has no .jpg, .jpeg or .png file"));
  Write("d/b/bad.png", "not a picture");
  EXPECT_THAT(FolderError("d"), HasSubstr("d/b/bad.png: neither a JPEG nor a PNG"));
  EXPECT_THAT(FolderError("d"), HasSubstr("skip_bad_images"));
  BadImages skipped;
  EXPECT_THAT(FolderDataset::Open(Path("d"), {.skip = &skipped}).status().ToString(),
              HasSubstr("none of the class's images is readable"));
  std::filesystem::create_symlink(Path("nowhere"), Path("d/a/dangling.png"));
  EXPECT_THAT(FolderError("d"), HasSubstr("d/a/dangling.png"));
}

TEST_F(ImageDatasetTest, BadFilesAreCountedAndTwentyAreNamed) {
  for (int i = 0; i < 30; ++i) Write("d/a/bad" + std::to_string(i) + ".png", "");
  WritePng("d/a/good.png", Pattern({4, 4, 1}, 0));
  BadImages skipped;
  const auto data = *FolderDataset::Open(Path("d"), {.threads = 2, .skip = &skipped});
  EXPECT_EQ(data->size(), 1);
  EXPECT_EQ(skipped.count(), 30);
  EXPECT_THAT(skipped.Summary(), HasSubstr("30 images left out: "));
  EXPECT_THAT(skipped.Summary(), HasSubstr("bad0.png: the file is empty"));
  EXPECT_THAT(skipped.Summary(), HasSubstr("and 10 more"));
}

TEST_F(ImageDatasetTest, AFileThatChangedIsAnError) {
  WritePng("d/a/1.png", Pattern({4, 4, 1}, 0));
  const auto data = *FolderDataset::Open(Path("d"), {});
  WritePng("d/a/1.png", Pattern({5, 4, 1}, 0));
  Image image;
  EXPECT_THAT(data->Decode(0, 1, 1, scratch_, image).ToString(), HasSubstr("1.png: is 5 x 4 pixels, and was 4 x 4"));
  std::filesystem::remove(Path("d/a/1.png"));
  EXPECT_TRUE(absl::IsNotFound(data->Decode(0, 1, 1, scratch_, image)));
}

}  // namespace
}  // namespace shoal
