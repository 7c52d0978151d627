#include "runtime/data/images/augment_ops.h"

#include <map>
#include <set>

#include "runtime/data/images/rand_augment.h"
#include "runtime/data/images/resize.h"
#include "tests/runtime/data/images/golden.h"
#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

const std::map<std::string, AugmentOp> kOps = {{"autocontrast", AugmentOp::kAutoContrast},
                                               {"equalize", AugmentOp::kEqualize},
                                               {"rotate", AugmentOp::kRotate},
                                               {"solarize", AugmentOp::kSolarize},
                                               {"color", AugmentOp::kColor},
                                               {"posterize", AugmentOp::kPosterize},
                                               {"contrast", AugmentOp::kContrast},
                                               {"brightness", AugmentOp::kBrightness},
                                               {"sharpness", AugmentOp::kSharpness},
                                               {"shear_x", AugmentOp::kShearX},
                                               {"shear_y", AugmentOp::kShearY},
                                               {"translate_x", AugmentOp::kTranslateX},
                                               {"translate_y", AugmentOp::kTranslateY}};

TEST(AugmentOps, EveryOperationHasPillowsBytes) {
  Image input, spare;
  std::set<AugmentOp> seen;
  for (const GoldenCase& golden : GoldenCases()) {
    if (golden.name == "input") input = ToImage(golden);
    if (kOps.count(golden.name) == 0) continue;
    Image image = input;
    ApplyAugment(kOps.at(golden.name), golden.argument, {10, 130, 250}, image, spare);
    ExpectPixels(image, golden, 0);
    seen.insert(kOps.at(golden.name));
  }
  EXPECT_EQ(seen.size(), kOps.size());
}

TEST(AugmentOps, ResizingHasPillowsBytes) {
  GoldenCase input;
  Resizer resizer;
  int cases = 0;
  for (const GoldenCase& golden : GoldenCases()) {
    if (golden.name == "input") input = golden;
    if (golden.name != "resize") continue;
    const Image from = ToImage(input);
    Image image;
    image.Reshape(golden.shape);
    const int width = golden.shape.width, height = golden.shape.height;
    resizer.Resize(from.view(), {width, height, 0, 0, width, height}, image.data());
    ExpectPixels(image, golden, 0);
    ++cases;
  }
  EXPECT_EQ(cases, 10);
}

TEST(AugmentOps, APartIsAPartOfTheWhole) {
  const Image from = Pattern({23, 31, 3}, 1);
  Resizer resizer;
  Image whole, part;
  whole.Reshape({14, 40, 3});
  part.Reshape({5, 9, 3});
  resizer.Resize(from.view(), {14, 40, 0, 0, 14, 40}, whole.data());
  resizer.Resize(from.view(), {14, 40, 6, 21, 5, 9}, part.data());
  for (int y = 0; y < 9; ++y) {
    for (int i = 0; i < 15; ++i) ASSERT_EQ(part.Row(y)[i], whole.Row(21 + y)[6 * 3 + i]) << y << " " << i;
  }
}

TEST(AugmentOps, OperationsThatChangeNothingAtTheirNeutralArgument) {
  for (const int channels : {1, 3}) {
    const Image image = Pattern({19, 12, channels}, 4);
    Image spare;
    for (const auto& [op, argument] : {std::pair{AugmentOp::kIdentity, 0.0},
                                       {AugmentOp::kRotate, 0.0},
                                       {AugmentOp::kSolarize, 256.0},
                                       {AugmentOp::kColor, 1.0},
                                       {AugmentOp::kPosterize, 8.0},
                                       {AugmentOp::kContrast, 1.0},
                                       {AugmentOp::kBrightness, 1.0},
                                       {AugmentOp::kSharpness, 1.0},
                                       {AugmentOp::kShearX, 0.0},
                                       {AugmentOp::kTranslateY, 0.0}}) {
      Image out = image;
      ApplyAugment(op, argument, {}, out, spare);
      EXPECT_EQ(Pixels(out), Pixels(image)) << static_cast<int>(op) << " of " << channels << " channels";
    }
  }
}

TEST(AugmentOps, TinyAndFlatImagesAreTaken) {
  Image spare;
  for (const auto& [width, height] : {std::pair{1, 1}, {2, 1}, {1, 3}, {2, 2}}) {
    for (int op = 0; op < kAugmentOps; ++op) {
      Image image;
      image.Reshape({width, height, 3});
      std::fill_n(image.data(), image.size(), uint8_t{77});
      const auto which = static_cast<AugmentOp>(op);
      ApplyAugment(which, AugmentArgument(which, 10, 1, image.shape()), {}, image, spare);
      EXPECT_EQ(image.shape(), (ImageShape{width, height, 3}));
    }
  }
}

TEST(RandAugment, StrengthFollowsTheMagnitude) {
  const ImageShape shape{331, 662, 3};
  const auto at = [&](AugmentOp op, double magnitude, int sign = 1) {
    return AugmentArgument(op, magnitude, sign, shape);
  };
  EXPECT_DOUBLE_EQ(at(AugmentOp::kRotate, 10), 30);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kRotate, 15, -1), -45);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kShearX, 10), 0.3);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kTranslateX, 10), 150);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kTranslateY, 5, -1), -150);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kColor, 10), 1.9);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kSharpness, 15, -1), 0);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kPosterize, 10), 4);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kPosterize, 30), 1);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kSolarize, 0), 256);
  EXPECT_DOUBLE_EQ(at(AugmentOp::kSolarize, 15), 0);
}

TEST(RandAugment, DrawsAreAFunctionOfSeedEpochAndIndex) {
  config::RandAugmentConfig config;
  const RandAugment augment(config, {});
  const auto made = [&](uint64_t seed, int64_t epoch, int64_t index) {
    ImageDraws draws(seed, epoch, index);
    Image image = Pattern({32, 32, 3}, 5), spare;
    augment.Apply(draws, image, spare);
    return Pixels(image);
  };
  EXPECT_EQ(made(1, 2, 3), made(1, 2, 3));
  std::set<std::vector<uint8_t>> different;
  for (int i = 0; i < 20; ++i) {
    different.insert(made(1, 2, i));
    different.insert(made(1, i + 10, 3));
    different.insert(made(static_cast<uint64_t>(i) + 10, 2, 3));
  }
  EXPECT_GT(different.size(), 45u);
}

TEST(ImageDraws, AreUniform) {
  std::array<int, 14> counts = {};
  double sum = 0;
  for (int i = 0; i < 2000; ++i) {
    ImageDraws draws(3, 1, i);
    for (int k = 0; k < 7; ++k) ++counts[static_cast<size_t>(draws.Below(14))];
    sum += draws.Between(2, 4);
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);
  EXPECT_NEAR(sum / 2000, 3, 0.05);
}

}  // namespace
}  // namespace shoal
