// The cases of tests/runtime/data/golden/images.txt: see make_images.py beside it.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "runtime/data/images/image.h"

namespace shoal {

struct GoldenCase {
  std::string name;
  double argument = 0;
  ImageShape shape;
  std::string bytes;
};

inline std::vector<GoldenCase> GoldenCases() {
  std::ifstream file("tests/runtime/data/golden/images.txt");
  std::vector<GoldenCase> cases;
  GoldenCase next;
  std::string hex;
  while (file >> next.name >> next.argument >> next.shape.width >> next.shape.height >> next.shape.channels >> hex) {
    next.bytes = absl::HexStringToBytes(hex);
    cases.push_back(next);
  }
  EXPECT_GT(cases.size(), 50u) << "tests/runtime/data/golden/images.txt is missing or short";
  return cases;
}

inline Image ToImage(const GoldenCase& golden) {
  Image image;
  image.Reshape(golden.shape);
  std::copy(golden.bytes.begin(), golden.bytes.end(), reinterpret_cast<char*>(image.data()));
  return image;
}

// Equal but for `tolerance` in each value.
inline void ExpectPixels(const Image& got, const GoldenCase& want, int tolerance) {
  ASSERT_EQ(got.shape(), want.shape) << want.name << " " << want.argument;
  for (int64_t i = 0; i < got.size(); ++i) {
    const int wanted = static_cast<uint8_t>(want.bytes[i]);
    ASSERT_LE(std::abs(got.data()[i] - wanted), tolerance)
        << want.name << " " << want.argument << ", value " << i << " is " << int{got.data()[i]} << ", not " << wanted;
  }
}

}  // namespace shoal
