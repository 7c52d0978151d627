#include "runtime/ops/cpu/conv_plan.h"

#include <algorithm>

namespace shoal::cpu {
namespace {

using ops::Direction;

// The taps of each target coordinate, equal lists gathered in one class.
std::vector<AxisClass> Classify(int64_t in, int64_t out, int64_t taps, const ConvShape& s, Direction direction) {
  std::vector<AxisClass> classes;
  const bool forward = direction == Direction::kForward;
  for (int64_t target = 0; target < (forward ? out : in); ++target) {
    std::vector<AxisTap> seen;
    int64_t base;
    if (forward) {
      base = target * s.stride - s.padding;
      const TapRange valid = ValidTaps(target, in, taps, s);
      for (int64_t tap = valid.begin; tap < valid.end; ++tap) seen.push_back({tap, tap});
    } else {
      base = (target + s.padding) / s.stride;
      for (int64_t tap = (target + s.padding) % s.stride, source = base; tap < taps; tap += s.stride, --source) {
        if (source >= 0 && source < out) seen.push_back({tap, source - base});
      }
    }
    auto found = std::find_if(classes.begin(), classes.end(), [&](const AxisClass& c) { return c.taps == seen; });
    if (found == classes.end()) found = classes.insert(classes.end(), AxisClass{seen, {}, {}});
    found->targets.push_back(target);
    found->bases.push_back(base);
  }
  return classes;
}

}  // namespace

ConvPlan::ConvPlan(const ConvShape& s, Direction direction)
    : s_(s), vertical_(Classify(s.h, s.p, s.kh, s, direction)), horizontal_(Classify(s.w, s.q, s.kw, s, direction)) {
  const bool forward = direction == Direction::kForward;
  source_h_ = forward ? s.h : s.p, source_w_ = forward ? s.w : s.q;
  target_h_ = forward ? s.p : s.h, target_w_ = forward ? s.q : s.w;
  source_channels_ = forward ? s.group_c() : s.group_o();
  target_channels_ = forward ? s.group_o() : s.group_c();

  std::vector<int64_t> slot(static_cast<size_t>(s.taps()), -1);
  for (const AxisClass& v : vertical_) {
    for (const AxisClass& h : horizontal_) {
      for (const AxisTap& i : v.taps) {
        for (const AxisTap& j : h.taps) slot[static_cast<size_t>(i.tap * s.kw + j.tap)] = 0;
      }
    }
  }
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    if (slot[static_cast<size_t>(tap)] < 0) continue;
    slot[static_cast<size_t>(tap)] = static_cast<int64_t>(used_taps_.size());
    used_taps_.push_back(tap);
  }
  for (const AxisClass& v : vertical_) {
    for (const AxisClass& h : horizontal_) {
      PixelClass pixels{&v, &h, {}, rows_, s.n * static_cast<int64_t>(v.targets.size() * h.targets.size())};
      rows_ += pixels.rows;
      for (const AxisTap& i : v.taps) {
        for (const AxisTap& j : h.taps) {
          const ProductRun run{(i.delta * source_w_ + j.delta) * source_channels_ * s.groups,
                               slot[static_cast<size_t>(i.tap * s.kw + j.tap)] * source_channels_, source_channels_};
          ProductRun* last = pixels.runs.empty() ? nullptr : &pixels.runs.back();
          if (last != nullptr && last->a + last->length == run.a && last->b + last->length == run.b)
            last->length += run.length;
          else
            pixels.runs.push_back(run);
        }
      }
      classes_.push_back(std::move(pixels));
    }
  }
}

void ConvPlan::Locate(const PixelClass& pixels, int64_t begin, int64_t end, int64_t* source, int64_t* target) const {
  const AxisClass &v = *pixels.vertical, &h = *pixels.horizontal;
  const auto across = static_cast<int64_t>(h.targets.size()), down = static_cast<int64_t>(v.targets.size());
  int64_t j = begin % across, i = begin / across % down, n = begin / across / down;
  for (int64_t row = begin; row < end; ++row) {
    const auto vi = static_cast<size_t>(i), hj = static_cast<size_t>(j);
    *source++ = ((n * source_h_ + v.bases[vi]) * source_w_ + h.bases[hj]) * source_channels_ * s_.groups;
    *target++ = ((n * target_h_ + v.targets[vi]) * target_w_ + h.targets[hj]) * target_channels_ * s_.groups;
    if (++j < across) continue;
    j = 0;
    if (++i < down) continue;
    i = 0;
    ++n;
  }
}

}  // namespace shoal::cpu
