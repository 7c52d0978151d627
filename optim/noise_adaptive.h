// The noise-adaptive layerwise rate of LANTON (arXiv 2510.14009): layers whose gradients are noisier than others of
// their group learn more slowly. Values in, values out; see config::MuonConfig::NoiseAdaptive for the formulas.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "optim/optim.pb.h"

namespace shoal {

class NoiseAdaptive {
 public:
  // `layers`: names of the tensors that take part. InvalidArgument names a group that none of them falls to.
  static absl::StatusOr<NoiseAdaptive> Create(const config::MuonConfig::NoiseAdaptive& config,
                                              std::vector<std::string> layers);

  const std::vector<std::string>& layers() const { return layers_; }
  // Whether noise is measured in this step; the first has no gradient before it.
  bool Measures(int64_t step) const { return step > 1 && step % config_.every_steps() == 0; }
  config::MuonConfig::NoiseAdaptive::Norm norm() const { return config_.norm(); }

  // H of each layer, from its noise's squared norm in this step.
  void Update(absl::Span<const double> squared_noise, absl::Span<double> h) const;
  // By what each layer's rate is multiplied: sqrt(a / max a over the group), exactly 1 where all H of a group are
  // equal.
  std::vector<double> Factors(absl::Span<const double> h) const;

 private:
  NoiseAdaptive(const config::MuonConfig::NoiseAdaptive& config, std::vector<std::string> layers)
      : config_(config), layers_(std::move(layers)), group_of_(layers_.size()) {}
  config::MuonConfig::NoiseAdaptive config_;
  std::vector<std::string> layers_;
  std::vector<int> group_of_;  // by layer; the last group is of those that match none
};

}  // namespace shoal
