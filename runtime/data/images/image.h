// 8-bit pixels, row by row from the top, channels last (1 grey, 3 red green blue).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shoal {

struct ImageShape {
  int width = 0, height = 0, channels = 0;
  int64_t size() const { return int64_t{width} * height * channels; }
  bool operator==(const ImageShape&) const = default;
};

// Borrowed pixels, possibly a part of a larger image.
struct ImageView {
  const uint8_t* pixels = nullptr;
  int width = 0, height = 0, channels = 0;
  int64_t row_bytes = 0;  // from one row to the next

  const uint8_t* Row(int y) const { return pixels + y * row_bytes; }
  ImageView Part(int x, int y, int part_width, int part_height) const {
    return {Row(y) + int64_t{x} * channels, part_width, part_height, channels, row_bytes};
  }
};

// Owned, dense pixels. A buffer that is reshaped keeps its memory.
class Image {
 public:
  void Reshape(const ImageShape& shape) {
    shape_ = shape;
    if (pixels_.size() < static_cast<size_t>(shape.size())) pixels_.resize(shape.size());
  }
  const ImageShape& shape() const { return shape_; }
  int width() const { return shape_.width; }
  int height() const { return shape_.height; }
  int channels() const { return shape_.channels; }
  int64_t size() const { return shape_.size(); }
  uint8_t* data() { return pixels_.data(); }
  const uint8_t* data() const { return pixels_.data(); }
  uint8_t* Row(int y) { return data() + int64_t{y} * shape_.width * shape_.channels; }
  ImageView view() const {
    return {data(), shape_.width, shape_.height, shape_.channels, int64_t{shape_.width} * shape_.channels};
  }

 private:
  ImageShape shape_;
  std::vector<uint8_t> pixels_;
};

}  // namespace shoal
