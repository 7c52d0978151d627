// Boxes: which part of a named tensor a rank holds. State is addressed by global tensor name and box, never by rank.
#pragma once

#include <string>
#include <vector>

#include "runtime/tensor/tensor.h"

namespace shoal {

// An n-dimensional box inside a tensor of shape `global`; extents may be 0 (an empty shard).
struct Box {
  Shape global, offset, extent;
  int64_t size() const { return NumElements(extent); }
  bool empty() const { return size() == 0; }
  friend bool operator==(const Box& a, const Box& b) {
    return a.global == b.global && a.offset == b.offset && a.extent == b.extent;
  }
};

Box WholeBox(const Shape& shape);
// Rows [begin, end) of dimension 0; a scalar (rank 0) is one row.
Box RowsBox(const Shape& shape, int64_t begin, int64_t end);
// Part of `a` that is also in `b` (same global shape); empty when they do not meet.
Box Intersect(const Box& a, const Box& b);
std::string BoxString(const Box& box);  // "[128:256, 0:768] of [768, 768]"

// Copies the common part of two boxes of one tensor between their local, contiguous buffers (dtypes may differ).
void CopyOverlap(const Tensor& from, const Box& from_box, const Tensor& to, const Box& to_box);

}  // namespace shoal
