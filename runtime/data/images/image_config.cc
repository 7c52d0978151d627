#include "runtime/data/images/image_config.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Config = config::ImageDataConfig;

// Means and deviations of pixels in [0, 1] over each training set.
struct Statistics {
  std::vector<double> mean, std;
};
Statistics UsualStatistics(Config::Format format) {
  switch (format) {
    case Config::CIFAR10:
      return {{0.4914, 0.4822, 0.4465}, {0.2470, 0.2435, 0.2616}};
    case Config::IDX:  // Fashion-MNIST
      return {{0.2860}, {0.3530}};
    default:  // ImageNet
      return {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};
  }
}

std::vector<double> InChannels(const std::vector<double>& values, int channels) {
  if (static_cast<int>(values.size()) == channels) return values;
  if (channels == 3) return std::vector<double>(3, values[0]);
  return {0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]};
}

class Findings {
 public:
  template <class T>
  void InRange(const char* field, T value, T least, T most) {
    if (value >= least && value <= most) return;
    Add(absl::StrCat(field, " is ", value, "; it lies in [", least, ", ", most, "]"));
  }
  void Add(std::string text) { lines_.push_back(absl::StrCat("data.images.", text)); }
  absl::Status Result() const {
    return lines_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(lines_, "\n"));
  }

 private:
  std::vector<std::string> lines_;
};

void CheckPaths(const Config& config, Findings& findings) {
  if (!config.has_path() && !config.has_train())
    findings.Add("path is not given; it names a folder of class folders, of CIFAR-10's .bin files or of IDX files");
  if (config.has_path() && config.has_train())
    findings.Add("path and data.images.train are both given; take one of them");
  if (config.has_validation() && !config.has_train())
    findings.Add("validation is given without data.images.train; give both, or path alone");
}

void CheckChannels(const Config& config, Findings& findings) {
  if (config.has_channels() && config.channels() != 1 && config.channels() != 3)
    findings.Add(absl::StrCat("channels is ", config.channels(), "; it takes 1 or 3"));
  if (config.mean_size() != config.std_size()) {
    findings.Add(absl::StrCat("mean has ", config.mean_size(), " values and data.images.std ", config.std_size(),
                              "; give one per channel of both, or neither"));
  } else if (config.mean_size() != 0 && config.mean_size() != 1 && config.mean_size() != 3) {
    findings.Add(absl::StrCat("mean has ", config.mean_size(), " values; it takes 1 or 3, one per channel"));
  }
  for (const double mean : config.mean()) findings.InRange("mean", mean, 0.0, 1.0);
  for (const double std : config.std()) findings.InRange("std", std, 1e-6, 1e6);
}

}  // namespace

absl::Status CheckImageConfig(const Config& config) {
  Findings findings;
  constexpr int kMostPixels = 8192;
  CheckPaths(config, findings);
  CheckChannels(config, findings);
  if (config.has_size()) findings.InRange("size", config.size(), 1, kMostPixels);
  findings.InRange("padding", config.padding(), 0, kMostPixels);
  findings.InRange("area_min", config.area_min(), 1e-6, 1.0);
  findings.InRange("area_max", config.area_max(), config.area_min(), 1.0);
  findings.InRange("aspect_min", config.aspect_min(), 0.01, 100.0);
  findings.InRange("aspect_max", config.aspect_max(), config.aspect_min(), 100.0);
  if (config.has_fill()) findings.InRange("fill", config.fill(), 0, 255);
  if (config.has_randaugment()) {
    findings.InRange("randaugment.layers", config.randaugment().layers(), 1, 16);
    findings.InRange("randaugment.magnitude", config.randaugment().magnitude(), 0.0, 30.0);
  }
  if (config.has_eval_resize()) {
    findings.InRange("eval_resize", config.eval_resize(), 0, kMostPixels);
    if (config.eval_resize() > 0 && config.has_size() && config.eval_resize() < config.size()) {
      findings.Add(absl::StrCat("eval_resize is ", config.eval_resize(), " and data.images.size ", config.size(),
                                "; the crop must fit into the resized image: take ", config.size(), " or more, or 0"));
    }
  }
  if (config.held_out() < 0 || config.held_out() >= 1)
    findings.Add(absl::StrCat("held_out is ", config.held_out(), "; it lies in [0, 1)"));
  findings.InRange("prefetch_threads", config.prefetch_threads(), 0, 256);
  findings.InRange("prefetch_steps", config.prefetch_steps(), 1, 1024);
  return findings.Result();
}

absl::Status FillImageDefaults(const ImageShape& common, int channels, Config& config) {
  const bool folder = config.format() == Config::FOLDER, idx = config.format() == Config::IDX;
  if (!config.has_size()) {
    if (!folder && common.width != common.height) {
      return absl::InvalidArgumentError(absl::StrCat("data.images.size is not given, and the images are ", common.width,
                                                     " x ", common.height,
                                                     "; give the side of the square that the model sees"));
    }
    config.set_size(folder ? 224 : common.width);
  }
  if (!config.has_channels()) config.set_channels(channels);
  if (!config.has_crop()) config.set_crop(folder ? Config::RANDOM_RESIZED : Config::PAD);
  if (!config.has_flip()) config.set_flip(!idx);
  if (!config.has_eval_resize())
    config.set_eval_resize(folder ? static_cast<int>(std::lround(config.size() / 0.875)) : 0);
  if (config.mean_size() == 0) {
    const Statistics usual = UsualStatistics(config.format());
    for (const double value : InChannels(usual.mean, config.channels())) config.add_mean(value);
    for (const double value : InChannels(usual.std, config.channels())) config.add_std(value);
  }
  if (config.mean_size() != config.channels()) {
    return absl::InvalidArgumentError(absl::StrCat("data.images.mean has ", config.mean_size(), " values, but images ",
                                                   config.channels(), " channels; give one per channel"));
  }
  if (!config.has_fill() && idx) config.set_fill(0);
  return absl::OkStatus();
}

}  // namespace shoal
