#include "runtime/data/images/image_transform.h"

#include <cmath>
#include <set>

#include "runtime/data/images/folder_dataset.h"
#include "runtime/data/images/image_config.h"
#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

using config::ImageDataConfig;

// Images of memory.
class FakeDataset : public ImageDataset {
 public:
  explicit FakeDataset(std::vector<Image> images) : images_(std::move(images)) {}
  int64_t size() const override { return static_cast<int64_t>(images_.size()); }
  const std::vector<std::string>& classes() const override { return classes_; }
  int32_t label(int64_t /*i*/) const override { return 0; }
  ImageShape shape(int64_t i) const override { return images_[i].shape(); }
  std::string Name(int64_t i) const override { return std::to_string(i); }
  absl::Status Decode(int64_t i, int /*channels*/, double least_scale, DecodeScratch& /*scratch*/,
                      Image& out) const override {
    least_scales_.push_back(least_scale);
    out = images_[i];
    return absl::OkStatus();
  }
  mutable std::vector<double> least_scales_;

 private:
  std::vector<Image> images_;
  std::vector<std::string> classes_ = {"one"};
};

ImageDataConfig Resolved(ImageDataConfig config, ImageDataConfig::Format format, const ImageShape& shape) {
  config.set_format(format);
  EXPECT_TRUE(FillImageDefaults(shape, shape.channels, config).ok());
  return config;
}

class ImageTransformTest : public testing::Test {
 protected:
  // With mean 0 and std 1/255, x holds the pixels' values.
  static ImageDataConfig Pixelwise(const ImageShape& shape) {
    ImageDataConfig config;
    config.set_size(shape.width);
    for (int c = 0; c < shape.channels; ++c) config.add_mean(0), config.add_std(1.0 / 255);
    config.set_flip(false);
    config.set_fill(200);
    return Resolved(config, ImageDataConfig::CIFAR10, shape);
  }
  std::vector<int> Train(const ImageDataConfig& config, const ImageDataset& data, int64_t epoch, uint64_t seed = 1) {
    std::vector<float> x(static_cast<size_t>(config.size()) * config.size() * config.channels());
    EXPECT_TRUE(ImageTransform(config, seed).Train(data, 0, epoch, 0, scratch_, x.data()).ok());
    return Rounded(x);
  }
  std::vector<int> Evaluate(const ImageDataConfig& config, const ImageDataset& data) {
    std::vector<float> x(static_cast<size_t>(config.size()) * config.size() * config.channels());
    EXPECT_TRUE(ImageTransform(config, 1).Evaluate(data, 0, scratch_, x.data()).ok());
    return Rounded(x);
  }
  static std::vector<int> Rounded(const std::vector<float>& x) {
    std::vector<int> values;
    for (const float v : x) values.push_back(static_cast<int>(std::lround(v)));
    return values;
  }
  ImageScratch scratch_;
};

TEST_F(ImageTransformTest, PixelsAreNormalisedPerChannel) {
  const FakeDataset data({Pattern({6, 6, 3}, 1)});
  ImageDataConfig config;
  config.set_crop(ImageDataConfig::NONE);
  config = Resolved(config, ImageDataConfig::CIFAR10, {6, 6, 3});
  std::vector<float> x(108);
  ASSERT_TRUE(ImageTransform(config, 1).Evaluate(data, 0, scratch_, x.data()).ok());
  const Image image = Pattern({6, 6, 3}, 1);
  for (int i = 0; i < 108; ++i) {
    const double want = (image.data()[i] / 255.0 - config.mean(i % 3)) / config.std(i % 3);
    ASSERT_NEAR(x[i], want, 1e-6 * std::abs(want) + 1e-7);
  }
}

TEST_F(ImageTransformTest, PadTakesEveryWindowAndFillsOutside) {
  const Image image = Pattern({8, 8, 1}, 1);
  const FakeDataset data({image});
  ImageDataConfig config = Pixelwise({8, 8, 1});
  config.set_padding(2);
  std::set<std::pair<int, int>> windows;
  for (int epoch = 0; epoch < 300; ++epoch) {
    const std::vector<int> x = Train(config, data, epoch);
    for (int dy = -2; dy <= 2; ++dy) {
      for (int dx = -2; dx <= 2; ++dx) {
        bool equal = true;
        for (int y = 0; y < 8 && equal; ++y) {
          for (int col = 0; col < 8 && equal; ++col) {
            const int from_y = y + dy, from_x = col + dx;
            const bool inside = from_x >= 0 && from_x < 8 && from_y >= 0 && from_y < 8;
            equal = x[y * 8 + col] == (inside ? image.data()[from_y * 8 + from_x] : 200);
          }
        }
        if (equal) windows.insert({dy, dx});
      }
    }
  }
  EXPECT_EQ(windows.size(), 25u);
}

TEST_F(ImageTransformTest, EverySecondImageIsMirrored) {
  const Image image = Pattern({8, 8, 3}, 1);
  const FakeDataset data({image});
  ImageDataConfig config = Pixelwise({8, 8, 3});
  config.set_padding(0);
  config.set_flip(true);
  int mirrored = 0;
  for (int epoch = 0; epoch < 400; ++epoch) {
    const std::vector<int> x = Train(config, data, epoch);
    const bool flipped = x[0] != image.data()[0];
    mirrored += flipped ? 1 : 0;
    for (int i = 0; i < 192; ++i) {
      const int row = i / 24, column = i % 24 / 3, c = i % 3;
      ASSERT_EQ(x[i], image.data()[row * 24 + (flipped ? 7 - column : column) * 3 + c]);
    }
  }
  EXPECT_NEAR(mirrored, 200, 50);
}

TEST_F(ImageTransformTest, CropsHaveTheAreaAndAspectAskedFor) {
  ImageDataConfig config;
  double area = 0;
  for (int i = 0; i < 4000; ++i) {
    ImageDraws draws(7, 0, i);
    const CropBox box = DrawCrop(draws, 500, 400, config);
    ASSERT_TRUE(box.x >= 0 && box.y >= 0 && box.x + box.width <= 500 && box.y + box.height <= 400);
    const double aspect = static_cast<double>(box.width) / box.height, share = box.width * box.height / 200000.0;
    ASSERT_TRUE(aspect > 0.74 && aspect < 1.35) << aspect;
    ASSERT_TRUE(share > 0.079 && share < 1.001) << share;
    area += share;
  }
  EXPECT_NEAR(area / 4000, 0.45, 0.02);  // below the middle of 0.54: large boxes often do not fit
}

TEST_F(ImageTransformTest, AnImageThatNoCropFitsGivesItsMiddle) {
  ImageDataConfig config;
  config.set_area_min(1);
  ImageDraws draws(1, 0, 0);
  const CropBox box = DrawCrop(draws, 1000, 30, config);
  EXPECT_EQ(box.height, 30);
  EXPECT_EQ(box.width, 40);
  EXPECT_EQ(box.x, 480);
}

TEST_F(ImageTransformTest, PhotosAreCutFromTheMiddleOfTheResizedImage) {
  // A dark frame that the centre crop leaves out.
  Image image;
  image.Reshape({64, 128, 3});
  std::fill_n(image.data(), image.size(), uint8_t{0});
  for (int y = 40; y < 88; ++y) std::fill_n(image.Row(y) + 8 * 3, 48 * 3, uint8_t{120});
  const FakeDataset data({image});
  ImageDataConfig config = Pixelwise({64, 128, 3});
  config.set_size(20);
  config.set_eval_resize(32);
  config.set_crop(ImageDataConfig::RANDOM_RESIZED);
  for (const int value : Evaluate(config, data)) ASSERT_EQ(value, 120);
  EXPECT_DOUBLE_EQ(data.least_scales_.back(), 0.5);
  config.set_eval_resize(0);
  config.set_size(48);
  for (const int value : Evaluate(config, data)) ASSERT_EQ(value, 120);
  config.set_crop(ImageDataConfig::CENTER);
  EXPECT_EQ(Train(config, data, 3), Evaluate(config, data));
}

class JpegTransformTest : public ImageFolderTest {};

TEST_F(JpegTransformTest, AShrunkenJpegLooksLikeTheWholeOne) {
  WriteJpeg("train/a/1.jpg", Pattern({640, 480, 3}, 0));
  WritePng("png/a/1.png", Pattern({640, 480, 3}, 0));
  ImageDataConfig config;
  config.set_size(48);
  config.set_flip(false);
  config = Resolved(config, ImageDataConfig::FOLDER, {0, 0, 3});
  const auto jpeg = *FolderDataset::Open(Path("train"), {}), png = *FolderDataset::Open(Path("png"), {});
  const ImageTransform transform(config, 1);
  ImageScratch scratch;
  std::vector<float> small(48 * 48 * 3), whole(48 * 48 * 3);
  for (int epoch = 0; epoch < 20; ++epoch) {
    ASSERT_TRUE(transform.Train(*jpeg, 0, epoch, 0, scratch, small.data()).ok());
    EXPECT_LT(scratch.decoded.width(), 640) << "decoded whole";
    ASSERT_TRUE(transform.Train(*png, 0, epoch, 0, scratch, whole.data()).ok());
    double error = 0;
    for (size_t i = 0; i < small.size(); ++i) error += std::abs(small[i] - whole[i]);
    // The pattern has hard edges, and shrinking moves the crop's border by a fraction of a pixel.
    EXPECT_LT(error / static_cast<double>(small.size()), 0.35) << epoch;
  }
}

}  // namespace
}  // namespace shoal
