#include "models/resnet_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "models/resnet.h"
#include "runtime/base/str.h"
#include "runtime/ops/image_ops.h"

namespace shoal {

using config::ResNetConfig;

namespace {

constexpr std::array<int, 4> kDepths18 = {2, 2, 2, 2}, kDepths50 = {3, 4, 6, 3}, kDepths101 = {3, 4, 23, 3},
                             kDepths152 = {3, 8, 36, 3}, kDepths200 = {3, 24, 36, 3}, kDepths270 = {4, 29, 53, 4},
                             kDepths350 = {4, 36, 72, 4}, kDepths420 = {4, 44, 87, 4};

struct PresetRow {
  ResNetConfig::Block block;
  std::array<int, 4> depths;
  bool rs = false;
  double dropout = 0, stochastic_depth = 0;  // of ResNet-RS at its usual resolution (tensorflow/tpu's configurations)
};

const PresetRow& RowOf(ResNetConfig::Preset preset) {
  static const auto* const kRows = new std::map<int, PresetRow>{
      {ResNetConfig::RESNET18, {ResNetConfig::BASIC, kDepths18}},
      {ResNetConfig::RESNET34, {ResNetConfig::BASIC, kDepths50}},
      {ResNetConfig::RESNET50, {ResNetConfig::BOTTLENECK, kDepths50}},
      {ResNetConfig::RESNET101, {ResNetConfig::BOTTLENECK, kDepths101}},
      {ResNetConfig::RESNET152, {ResNetConfig::BOTTLENECK, kDepths152}},
      {ResNetConfig::RS50, {ResNetConfig::BOTTLENECK, kDepths50, true, 0.25, 0}},
      {ResNetConfig::RS101, {ResNetConfig::BOTTLENECK, kDepths101, true, 0.25, 0}},
      {ResNetConfig::RS152, {ResNetConfig::BOTTLENECK, kDepths152, true, 0.25, 0}},
      {ResNetConfig::RS200, {ResNetConfig::BOTTLENECK, kDepths200, true, 0.25, 0.1}},
      {ResNetConfig::RS270, {ResNetConfig::BOTTLENECK, kDepths270, true, 0.25, 0.1}},
      {ResNetConfig::RS350, {ResNetConfig::BOTTLENECK, kDepths350, true, 0.25, 0.1}},
      {ResNetConfig::RS420, {ResNetConfig::BOTTLENECK, kDepths420, true, 0.4, 0.1}},
  };
  static const auto* const kCustom = new PresetRow{ResNetConfig::BASIC, kDepths18};
  const auto at = kRows->find(preset);
  return at == kRows->end() ? *kCustom : at->second;
}

void FillFromPreset(ResNetConfig& c) {
  const PresetRow& row = RowOf(c.preset());
  if (!c.has_block()) c.set_block(row.block);
  if (c.depths_size() == 0) {
    for (const int depth : row.depths) c.add_depths(depth);
  }
  if (!c.has_width()) c.set_width(64);
  if (!c.has_groups()) c.set_groups(1);
  if (!c.has_stem()) c.set_stem(row.rs ? ResNetConfig::RS : ResNetConfig::IMAGENET);
  if (!c.has_shortcut()) c.set_shortcut(row.rs ? ResNetConfig::AVERAGE_POOL : ResNetConfig::PROJECTION);
  if (!c.has_squeeze_excite()) c.set_squeeze_excite(row.rs ? 0.25 : 0);
  if (!c.has_stochastic_depth()) c.set_stochastic_depth(row.stochastic_depth);
  if (!c.has_dropout()) c.set_dropout(row.dropout);
  if (!c.has_zero_init_residual()) c.set_zero_init_residual(row.rs);
}

int32_t RoundTo(double value, int32_t multiple) {
  return std::max(multiple, static_cast<int32_t>(std::lround(value / multiple)) * multiple);
}

// Rounding as pycls does it: depths to whole blocks, widths to multiples of 8, group widths of up to 2 as they are, up
// to 5 to 4, else to multiples of 8, images to multiples of 4.
void ApplyScale(ResNetConfig& c) {
  const double f = c.scale().flops(), a = c.scale().alpha();
  c.clear_scale();
  if (f == 1) return;
  const double depth = std::pow(f, (1 - a) / 2), width = std::pow(f, a / 2), size = std::pow(f, (1 - a) / 4);
  for (int i = 0; i < c.depths_size(); ++i)
    c.set_depths(i, std::max(1, static_cast<int32_t>(std::lround(c.depths(i) * depth))));
  if (c.groups() == 1) {
    c.set_width(RoundTo(c.width() * width, 8));
  } else {
    const double wanted = static_cast<double>(c.width()) / c.groups() * width;
    const int32_t group = wanted <= 2   ? std::max(1, static_cast<int32_t>(std::lround(wanted)))
                          : wanted <= 5 ? 4
                                        : RoundTo(wanted, 8);
    const int32_t channels = RoundTo(c.width() * width, std::max(8, group));
    c.set_width(channels);
    c.set_groups(channels / group);
  }
  c.set_image_size(RoundTo(c.image_size() * size, 4));
}

}  // namespace

absl::StatusOr<ResNetConfig> ResolveResNet(ResNetConfig c, const ImageFacts& facts) {
  std::vector<std::string> wrong;
  const auto add = [&](const std::string& what) { wrong.push_back("model.resnet." + what); };
  const auto share = [&](const char* field, double value) {
    if (value < 0 || value >= 1) add(absl::StrCat(field, " is ", value, "; it lies in [0, 1)"));
  };
  FillFromPreset(c);
  const auto from_data = [&](const char* field, bool has, int32_t fact, auto set) {
    if (has) return;
    if (fact > 0)
      set(fact);
    else
      add(absl::StrCat(field, " is not set, and there is no data that says it"));
  };
  from_data("classes", c.has_classes(), facts.classes, [&](int32_t v) { c.set_classes(v); });
  from_data("image_size", c.has_image_size(), facts.size, [&](int32_t v) { c.set_image_size(v); });
  from_data("channels", c.has_channels(), facts.channels, [&](int32_t v) { c.set_channels(v); });
  const auto positive = [&](const char* field, int64_t value) {
    if (value < 1) add(absl::StrCat(field, " is ", value, "; it needs 1 or more"));
  };
  positive("width", c.width());
  positive("groups", c.groups());
  if (c.has_classes()) positive("classes", c.classes());
  if (c.has_image_size()) positive("image_size", c.image_size());
  if (c.has_channels()) positive("channels", c.channels());
  for (const int32_t depth : c.depths()) positive("depths", depth);
  share("stochastic_depth", c.stochastic_depth());
  share("dropout", c.dropout());
  share("label_smoothing", c.label_smoothing());
  if (c.squeeze_excite() < 0 || c.squeeze_excite() > 1)
    add(absl::StrCat("squeeze_excite is ", c.squeeze_excite(), "; it lies in [0, 1]"));
  if (c.norm_momentum() <= 0 || c.norm_momentum() > 1)
    add(absl::StrCat("norm_momentum is ", c.norm_momentum(), "; it lies in (0, 1]"));
  if (c.norm_epsilon() <= 0) add(absl::StrCat("norm_epsilon is ", c.norm_epsilon(), "; it must be above 0"));
  if (c.scale().flops() <= 0) add(absl::StrCat("scale.flops is ", c.scale().flops(), "; it must be above 0"));
  if (c.scale().alpha() < 0 || c.scale().alpha() > 1)
    add(absl::StrCat("scale.alpha is ", c.scale().alpha(), "; it lies in [0, 1]"));
  if (wrong.empty()) {
    ApplyScale(c);
    if (c.width() % c.groups() != 0)
      add(absl::StrCat("groups is ", c.groups(), " and width is ", c.width(), "; groups must divide width"));
    if (c.block() == ResNetConfig::BASIC && c.groups() != 1)
      add(absl::StrCat("groups is ", c.groups(), "; only block: BOTTLENECK has groups"));
  }
  if (!wrong.empty()) return absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
  // Defaults become explicit, so that a resolved job says everything.
  c.set_preset(c.preset());
  c.set_label_smoothing(c.label_smoothing());
  c.set_norm_momentum(c.norm_momentum());
  c.set_norm_epsilon(c.norm_epsilon());
  c.set_sync_norm(c.sync_norm());
  return c;
}

std::vector<ConvLayer> ConvLayers(const ResNetConfig& c) {
  std::vector<ConvLayer> layers;
  int64_t channels = c.channels(), size = c.image_size();
  const auto add = [&](const std::string& name, int64_t out, int64_t kernel, int64_t stride, int64_t groups = 1) {
    layers.push_back({name, channels, out, kernel, stride, groups, size});
    size = ops::ConvExtent(size, kernel, stride, kernel / 2);
    channels = out;
  };
  for (const StemConv& conv : StemConvs(c)) add(conv.name, conv.out, conv.kernel, conv.stride);
  if (HasMaxPool(c)) size = ops::ConvExtent(size, 3, 2, 1);
  ForEachBlock(c, [&](const BlockShape& b) {
    const int64_t in = channels, before = size;
    if (c.block() == ResNetConfig::BASIC) {
      add(b.name + ".conv1", b.middle, 3, b.stride);
      add(b.name + ".conv2", b.out, 3, 1);
    } else {
      add(b.name + ".conv1", b.middle, 1, 1);
      add(b.name + ".conv2", b.middle, 3, b.stride, c.groups());
      add(b.name + ".conv3", b.out, 1, 1);
    }
    if (b.stride == 1 && in == b.out) return;
    const bool pooled = c.shortcut() == ResNetConfig::AVERAGE_POOL && b.stride == 2;
    layers.push_back(
        {b.name + ".shortcut", in, b.out, 1, pooled ? 1 : b.stride, 1, pooled ? (before + 1) / 2 : before});
  });
  return layers;
}

namespace {

double OutputPixels(const ConvLayer& l) {
  const auto side = static_cast<double>(ops::ConvExtent(l.size, l.kernel, l.stride, l.kernel / 2));
  return side * side;
}

}  // namespace

double ForwardMacs(const ResNetConfig& c) {
  double macs = 0, features = 0;
  for (const ConvLayer& l : ConvLayers(c)) {
    macs += OutputPixels(l) * static_cast<double>(l.kernel * l.kernel * (l.in / l.groups) * l.out);
    features = static_cast<double>(l.out);
  }
  return macs + features * c.classes();
}

double Activations(const ResNetConfig& c) {
  double elements = 0;
  for (const ConvLayer& l : ConvLayers(c)) elements += OutputPixels(l) * static_cast<double>(l.out);
  return elements;
}

std::string ResNetText(const ResNetConfig& c) {
  return absl::StrFormat("depths %s, width %d, %d pixels: %s parameters, %.3g GMACs, %s activations",
                         absl::StrJoin(c.depths(), "-"), c.width(), c.image_size(),
                         HumanCount(static_cast<double>(ResNet(c, Recomputed::kNothing).parameter_count())),
                         ForwardMacs(c) / 1e9, HumanCount(Activations(c)));
}

}  // namespace shoal
