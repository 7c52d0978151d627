#include "optim/noise_adaptive.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<NoiseAdaptive> NoiseAdaptive::Create(const config::MuonConfig::NoiseAdaptive& config,
                                                    std::vector<std::string> layers) {
  NoiseAdaptive adaptive(config, std::move(layers));
  std::fill(adaptive.group_of_.begin(), adaptive.group_of_.end(), config.group_size());
  for (int g = config.group_size() - 1; g >= 0; --g) {  // backwards: the first match stays
    SHOAL_ASSIGN_OR_RETURN(const Regex regex, Regex::Compile(config.group(g)));
    for (size_t i = 0; i < adaptive.layers_.size(); ++i) {
      if (regex.Matches(adaptive.layers_[i])) adaptive.group_of_[i] = g;
    }
  }
  for (int g = 0; g < config.group_size(); ++g) {
    if (std::find(adaptive.group_of_.begin(), adaptive.group_of_.end(), g) == adaptive.group_of_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("optim.muon.noise_adaptive.group '", config.group(g),
                                                     "' matches no matrix that an earlier one leaves"));
    }
  }
  return adaptive;
}

void NoiseAdaptive::Update(absl::Span<const double> squared_noise, absl::Span<double> h) const {
  for (size_t i = 0; i < h.size(); ++i) h[i] = config_.beta2() * h[i] + (1 - config_.beta2()) * squared_noise[i];
}

std::vector<double> NoiseAdaptive::Factors(absl::Span<const double> h) const {
  std::vector<double> factors(h.size(), 1.0);
  for (int g = 0; g <= config_.group_size(); ++g) {
    std::vector<double> of_group;
    for (size_t i = 0; i < h.size(); ++i) {
      if (group_of_[i] == g) of_group.push_back(h[i]);
    }
    if (of_group.empty()) continue;
    double squared_alpha = config_.alpha() * config_.alpha();
    if (!config_.has_alpha()) {  // the median of sqrt(H), squared
      const auto middle = of_group.begin() + static_cast<int64_t>(of_group.size() / 2);
      std::nth_element(of_group.begin(), middle, of_group.end());
      squared_alpha = *middle;
    }
    const double least = *std::min_element(of_group.begin(), of_group.end());
    if (squared_alpha + least == 0) continue;  // nothing measured yet
    for (size_t i = 0; i < h.size(); ++i) {
      // a_i / a_max = sqrt((alpha^2 + H_min) / (alpha^2 + H_i)), and the rate takes the root of that.
      if (group_of_[i] == g) factors[i] = std::pow((squared_alpha + least) / (squared_alpha + h[i]), 0.25);
    }
  }
  return factors;
}

}  // namespace shoal
