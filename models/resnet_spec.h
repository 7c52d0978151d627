// ResNetSpec: a ResNet's dimensions with every default settled, and what follows from them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/models.pb.h"

namespace shoal {

// What the data say of themselves, for fields that the job leaves unset; 0: unknown.
struct ImageFacts {
  int32_t size = 0, channels = 0, classes = 0;
};

// Fills what the job leaves unset from the preset, then from `facts`, then applies `scale` (which becomes 1 in the
// result). InvalidArgument names each combination that cannot be, joined by newlines.
absl::StatusOr<config::ResNetConfig> ResolveResNet(config::ResNetConfig config, const ImageFacts& facts);

// Every convolution of a resolved config in the order of forward, for counting and for benchmarks.
struct ConvLayer {
  std::string name;
  int64_t in = 0, out = 0, kernel = 1, stride = 1, groups = 1;
  int64_t size = 0;  // pixels of a side of its input
};
std::vector<ConvLayer> ConvLayers(const config::ResNetConfig& config);

// Multiply-adds of the convolutions and the classifier of one image, forward.
double ForwardMacs(const config::ResNetConfig& config);
// Elements that convolutions put out for one image, forward: the paper's measure of memory traffic.
double Activations(const config::ResNetConfig& config);
// "depths 3-4-6-3, width 64, 224 pixels: 25.6M parameters, 4.09 GMACs, 11.1M activations".
std::string ResNetText(const config::ResNetConfig& config);

}  // namespace shoal
