#include "parallel/box.h"

#include <glog/logging.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace shoal {

Box WholeBox(const Shape& shape) { return {shape, Shape(shape.size(), 0), shape}; }

Box RowsBox(const Shape& shape, int64_t begin, int64_t end) {
  Box box = WholeBox(shape);
  if (shape.empty()) return box;
  box.offset[0] = begin;
  box.extent[0] = end - begin;
  return box;
}

Box Intersect(const Box& a, const Box& b) {
  CHECK(a.global == b.global) << "boxes of different tensors: " << BoxString(a) << " and " << BoxString(b);
  Box box = a;
  for (size_t d = 0; d < a.global.size(); ++d) {
    const int64_t begin = std::max(a.offset[d], b.offset[d]);
    const int64_t end = std::min(a.offset[d] + a.extent[d], b.offset[d] + b.extent[d]);
    box.offset[d] = begin;
    box.extent[d] = std::max<int64_t>(0, end - begin);
  }
  return box;
}

std::string BoxString(const Box& box) {
  std::string text = "[";
  for (size_t d = 0; d < box.global.size(); ++d) {
    absl::StrAppend(&text, d > 0 ? ", " : "", box.offset[d], ":", box.offset[d] + box.extent[d]);
  }
  return absl::StrCat(text, "] of ", ShapeString(box.global));
}

namespace {

double Read(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::kF64) return t.data<double>()[i];
  return static_cast<double>(t.dtype() == DType::kF32 ? t.data<float>()[i] : static_cast<float>(t.data<BFloat16>()[i]));
}
void Write(const Tensor& t, int64_t i, double v) {
  if (t.dtype() == DType::kF64)
    t.data<double>()[i] = v;
  else if (t.dtype() == DType::kF32)
    t.data<float>()[i] = static_cast<float>(v);
  else
    t.data<BFloat16>()[i] = BFloat16(static_cast<float>(v));
}

int64_t Locate(const Box& box, const Shape& at) {
  int64_t index = 0;
  for (size_t d = 0; d < at.size(); ++d) index = index * box.extent[d] + at[d] - box.offset[d];
  return index;
}

}  // namespace

void CopyOverlap(const Tensor& from, const Box& from_box, const Tensor& to, const Box& to_box) {
  CHECK(from.size() == from_box.size() && to.size() == to_box.size()) << "a box's buffer holds exactly the box";
  const Box common = Intersect(from_box, to_box);
  if (common.empty()) return;
  // Rows of the last dimension are contiguous in both.
  const size_t dims = common.global.size();
  const int64_t run = dims == 0 ? 1 : common.extent[dims - 1];
  Shape at = common.offset;
  for (;;) {
    const int64_t source = Locate(from_box, at), target = Locate(to_box, at);
    if (from.dtype() == to.dtype()) {
      const int64_t bytes = DTypeBytes(from.dtype());
      std::copy_n(static_cast<const char*>(from.raw()) + source * bytes, run * bytes,
                  static_cast<char*>(to.raw()) + target * bytes);
    } else {
      for (int64_t i = 0; i < run; ++i) Write(to, target + i, Read(from, source + i));
    }
    int d = static_cast<int>(dims) - 2;
    while (d >= 0 && ++at[d] == common.offset[d] + common.extent[d]) {
      at[d] = common.offset[d];
      --d;
    }
    if (d < 0) return;
  }
}

}  // namespace shoal
