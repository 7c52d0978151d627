// Which taps meet the image for which output pixels: the classes of pixels that direct convolution works on.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/ops/cpu/conv_kernels.h"
#include "runtime/ops/cpu/conv_shape.h"

namespace shoal::cpu {

// A tap of one axis and where its pixel lies from a target's base pixel.
struct AxisTap {
  int64_t tap = 0, delta = 0;
  bool operator==(const AxisTap&) const = default;
};
// Coordinates along one axis that see the same taps: `targets` of the output, each with its base in the source.
struct AxisClass {
  std::vector<AxisTap> taps;
  std::vector<int64_t> targets, bases;
};

// Pixels that see the same taps; `rows` are (image, target row, target column), in that order.
struct PixelClass {
  const AxisClass* vertical = nullptr;
  const AxisClass* horizontal = nullptr;
  std::vector<ProductRun> runs;  // over the packed depth
  int64_t first = 0, rows = 0;   // among the rows of all classes
};

// Forward: the target is y, the source x, and a run's depth counts input channels. Backward: the target is dx, the
// source dy, and it counts output channels. Channels are of one group.
class ConvPlan {
 public:
  ConvPlan(const ConvShape& s, ops::Direction direction);
  ConvPlan(const ConvPlan&) = delete;
  ConvPlan& operator=(const ConvPlan&) = delete;

  const std::vector<PixelClass>& classes() const { return classes_; }
  const std::vector<int64_t>& used_taps() const { return used_taps_; }  // in packed order
  int64_t rows() const { return rows_; }
  int64_t source_channels() const { return source_channels_; }  // of one group, like target_channels
  int64_t target_channels() const { return target_channels_; }
  int64_t depth() const { return static_cast<int64_t>(used_taps_.size()) * source_channels_; }
  // Offsets of rows [begin, end) of a class, for channel 0.
  void Locate(const PixelClass& pixels, int64_t begin, int64_t end, int64_t* source, int64_t* target) const;

 private:
  ConvShape s_;
  int64_t source_h_, source_w_, target_h_, target_w_, source_channels_, target_channels_, rows_ = 0;
  std::vector<AxisClass> vertical_, horizontal_;
  std::vector<PixelClass> classes_;
  std::vector<int64_t> used_taps_;
};

}  // namespace shoal::cpu
