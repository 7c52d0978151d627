// What the tests of images share: a folder of its own for each test, and writers of small data sets.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "runtime/data/images/image.h"
#include "runtime/data/images/jpeg.h"
#include "runtime/data/images/png.h"
#include "runtime/runtime.pb.h"

namespace shoal {

// A smooth pattern that differs from seed to seed.
inline Image Pattern(const ImageShape& shape, int seed) {
  Image image;
  image.Reshape(shape);
  for (int64_t i = 0; i < shape.size(); ++i) {
    const int64_t c = i % shape.channels, x = i / shape.channels % shape.width, y = i / shape.channels / shape.width;
    image.data()[i] = static_cast<uint8_t>((7 * x + 5 * y + 60 * c + 37 * seed) % 256 / 2 + 60);
  }
  return image;
}

inline std::vector<uint8_t> Pixels(const Image& image) { return {image.data(), image.data() + image.size()}; }

class ImageFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = testing::TempDir() + "/" + test->test_suite_name() + "." + test->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Write(const std::string& name, absl::string_view bytes) const {
    std::filesystem::create_directories(std::filesystem::path(Path(name)).parent_path());
    std::ofstream(Path(name), std::ios::binary) << bytes;
  }
  std::string Slurp(const std::string& name) const {
    std::ifstream file(Path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void WritePng(const std::string& name, const Image& image) const {
    std::string bytes;
    ASSERT_TRUE(EncodePng(image.view(), bytes).ok());
    Write(name, bytes);
  }
  void WriteJpeg(const std::string& name, const Image& image) const {
    std::string bytes;
    ASSERT_TRUE(EncodeJpeg(image.view(), 90, bytes).ok());
    Write(name, bytes);
  }
  // `images` records; image i is label i % 10 and pixels (i + position) % 256 in CIFAR's order of planes.
  void WriteCifar(const std::string& name, int images, int first = 0) const {
    std::string bytes;
    for (int i = first; i < first + images; ++i) {
      bytes.push_back(static_cast<char>(i % 10));
      for (int p = 0; p < 3072; ++p) bytes.push_back(static_cast<char>((i + p) % 256));
    }
    Write(name, bytes);
  }
  static std::string IdxBytes(const std::vector<uint32_t>& shape, const std::string& elements) {
    std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
    for (const uint32_t extent : shape) {
      for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(extent >> shift));
    }
    return bytes + elements;
  }
  // `images` grey squares; image i is label i % classes, its pixels i, i + 1, ...
  void WriteIdx(const std::string& prefix, int images, int side, int classes) const {
    std::string pixels, labels;
    for (int i = 0; i < images; ++i) {
      labels.push_back(static_cast<char>(i % classes));
      for (int p = 0; p < side * side; ++p) pixels.push_back(static_cast<char>(i + p));
    }
    const auto count = static_cast<uint32_t>(images), extent = static_cast<uint32_t>(side);
    Write(prefix + "-images-idx3-ubyte", IdxBytes({count, extent, extent}, pixels));
    Write(prefix + "-labels-idx1-ubyte", IdxBytes({count}, labels));
  }
  config::ImageDataConfig Config(const std::string& path) const {
    config::ImageDataConfig config;
    config.set_path(path);
    return config;
  }
  std::string folder_;
};

}  // namespace shoal
