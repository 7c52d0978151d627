#include "runtime/data/images/image_data.h"

#include <gmock/gmock.h>

#include <set>

#include "runtime/base/status.h"
#include "runtime/data/images/image_config.h"
#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

using config::ImageDataConfig;
using testing::HasSubstr;

class ImageDataTest : public ImageFolderTest {
 protected:
  static std::string Error(const ImageDataConfig& config) { return ImageData::Open(config).status().ToString(); }
  static void ExpectDataError(const ImageDataConfig& config, const std::string& message) {
    const absl::Status status = ImageData::Open(config).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kData) << status;
    EXPECT_THAT(status.ToString(), HasSubstr(message));
  }
};

TEST_F(ImageDataTest, FindsTheUsualNames) {
  WriteCifar("cifar/data_batch_1.bin", 20);
  WriteCifar("cifar/data_batch_2.bin", 20);
  WriteCifar("cifar/test_batch.bin", 10);
  auto data = *ImageData::Open(Config(Path("cifar")));
  EXPECT_EQ(data->config().format(), ImageDataConfig::CIFAR10);
  EXPECT_EQ(data->train().size(), 40);
  EXPECT_EQ(data->held_out().size(), 10);
  EXPECT_EQ(data->classes(), 10);
  WriteIdx("idx/train", 20, 28, 4);
  WriteIdx("idx/t10k", 8, 28, 4);
  data = *ImageData::Open(Config(Path("idx")));
  EXPECT_EQ(data->config().format(), ImageDataConfig::IDX);
  EXPECT_EQ(data->train().size(), 20);
  EXPECT_EQ(data->held_out().size(), 8);
  EXPECT_EQ(data->size(), 28);
  EXPECT_EQ(data->channels(), 1);
  WritePng("photos/train/a/1.png", Pattern({300, 260, 3}, 0));
  WritePng("photos/val/a/1.png", Pattern({300, 260, 3}, 0));
  data = *ImageData::Open(Config(Path("photos")));
  EXPECT_EQ(data->config().format(), ImageDataConfig::FOLDER);
  EXPECT_EQ(data->size(), 224);
  EXPECT_EQ(data->config().eval_resize(), 256);
  EXPECT_THAT(data->Summary(), HasSubstr("FOLDER: 1 training images of 1 classes, 1 in the validation set"));
  ImageDataConfig parts;
  parts.set_train(Path("idx/train-images-idx3-ubyte"));
  parts.set_validation(Path("idx"));
  data = *ImageData::Open(parts);
  EXPECT_EQ(data->train().size(), 20);
  EXPECT_EQ(data->held_out().size(), 8);
}

TEST_F(ImageDataTest, WhatIsMissingIsNamed) {
  ExpectDataError(Config(Path("none")), "none: no such file or folder");
  WriteCifar("cifar/test_batch.bin", 10);
  ExpectDataError(Config(Path("cifar")), "has no training file; expected data_batch_*.bin");
  Write("idx/train-images-idx3-ubyte", "");
  ExpectDataError(Config(Path("idx")), "its labels are not beside it, as train-labels-idx1-ubyte");
  Write("file.dat", "");
  ExpectDataError(Config(Path("file.dat")), "neither a folder nor a .bin");
}

TEST_F(ImageDataTest, FashionMnistIsWhatItsDefaultsSay) {
  const auto data = ImageData::Open(Config("/usr/share/datasets/fashion-mnist"));
  ASSERT_TRUE(data.ok()) << data.status() << "; launch/setup installs dataset-fashion-mnist";
  EXPECT_EQ((*data)->train().size(), 60000);
  EXPECT_EQ((*data)->held_out().size(), 10000);
  EXPECT_EQ((*data)->classes(), 10);
  EXPECT_EQ((*data)->train().label(0), 9);
  double sum = 0, squares = 0;
  int64_t pixels = 0;
  Image image;
  DecodeScratch scratch;
  for (int64_t i = 0; i < 60000; i += 7) {
    ASSERT_TRUE((*data)->train().Decode(i, 1, 1, scratch, image).ok());
    for (int64_t p = 0; p < image.size(); ++p) {
      const double value = image.data()[p] / 255.0;
      sum += value, squares += value * value, ++pixels;
    }
  }
  const double mean = sum / static_cast<double>(pixels);
  EXPECT_NEAR((*data)->config().mean(0), mean, 2e-3);
  EXPECT_NEAR((*data)->config().std(0), std::sqrt(squares / static_cast<double>(pixels) - mean * mean), 2e-3);
}

TEST_F(ImageDataTest, AShareIsHeldOutWhereThereIsNoValidationSet) {
  WriteIdx("train", 1000, 8, 4);
  auto config = Config(folder_);
  config.set_held_out(0.1);
  const auto data = *ImageData::Open(config), again = *ImageData::Open(config);
  std::set<std::string> names;
  for (const auto* set : {&data->train(), &data->held_out()}) {
    for (int64_t i = 0; i < set->size(); ++i) names.insert(set->Name(i));
  }
  EXPECT_EQ(names.size(), 1000u);
  EXPECT_NEAR(static_cast<double>(data->held_out().size()), 100, 30);
  EXPECT_EQ(data->held_out().Name(3), again->held_out().Name(3));
  config.set_held_out(1e-9);
  EXPECT_EQ((*ImageData::Open(config))->held_out().size(), 1);
  config.set_held_out(0);
  EXPECT_EQ((*ImageData::Open(config))->held_out().size(), 0);
}

TEST_F(ImageDataTest, ClassesOfBothSetsMustAgree) {
  for (const char* name : {"train/ape", "train/bat", "train/cow", "val/bat", "val/cow", "val/dog", "val/eel"})
    WritePng(std::string(name) + "/1.png", Pattern({8, 8, 3}, 0));
  ExpectDataError(Config(folder_),
                  "classes differ: only in " + Path("train") + ": ape; only in " + Path("val") + ": dog, eel");
  WriteIdx("idx/train", 6, 4, 3);
  WriteIdx("idx/t10k", 6, 4, 4);
  ExpectDataError(Config(Path("idx")), "label 3 is 3, but the training set's are 0 to 2");
}

TEST_F(ImageDataTest, ChannelsAreCheckedOrConverted) {
  WritePng("d/a/1.png", Pattern({8, 8, 3}, 0));
  WritePng("d/a/2.png", Pattern({8, 8, 1}, 0));
  WritePng("d/a/3.png", Pattern({8, 8, 4}, 0));
  auto config = Config(Path("d"));
  config.set_size(8);
  ExpectDataError(config, "a/2.png: has 1 (grey) channels, but the data set has 3");
  config.set_convert_channels(true);
  EXPECT_EQ(Error(config), "OK");
  config.set_channels(1);
  const auto grey = *ImageData::Open(config);
  EXPECT_EQ(grey->config().mean_size(), 1);
  config.set_convert_channels(false);
  ExpectDataError(config, "a/1.png: has 3 (colour) channels");
}

TEST_F(ImageDataTest, ImagesMustHoldTheirCrop) {
  WriteIdx("train", 5, 20, 2);
  auto config = Config(folder_);
  config.set_size(28);
  config.set_padding(3);
  ExpectDataError(config, "image 0: is 20 x 20 pixels, with data.images.padding 3 on each side smaller than the crop");
  config.set_padding(4);
  ExpectDataError(config, ": is 20 x 20 pixels, smaller than the crop");
  config.set_eval_resize(28);
  EXPECT_EQ(Error(config), "OK");
  config.clear_eval_resize();
  config.set_crop(ImageDataConfig::NONE);
  EXPECT_EQ(Error(config), "OK");
  config.set_crop(ImageDataConfig::CENTER);
  ExpectDataError(config, "smaller than the crop");
}

TEST_F(ImageDataTest, EveryConfigurationErrorIsListed) {
  ImageDataConfig config;
  config.set_channels(2);
  config.set_size(0);
  config.set_area_min(0.5);
  config.set_area_max(0.4);
  config.mutable_randaugment()->set_magnitude(31);
  config.add_mean(0.5);
  config.set_held_out(1);
  config.set_validation("x");
  const absl::Status status = CheckImageConfig(config);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kConfig);
  for (const char* line :
       {"data.images.path is not given", "data.images.channels is 2; it takes 1 or 3", "data.images.size is 0",
        "data.images.area_max is 0.4; it lies in [0.5, 1]", "data.images.randaugment.magnitude is 31",
        "data.images.mean has 1 values and data.images.std 0", "data.images.held_out is 1",
        "data.images.validation is given without"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(line));
  }
}

}  // namespace
}  // namespace shoal
