// Which files data.images means: the format of a path, and the usual names of training and validation sets below it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/runtime.pb.h"

namespace shoal {

struct ImagePaths {
  config::ImageDataConfig::Format format = config::ImageDataConfig::FOLDER;  // never AUTO
  // Folders: the folder of class folders. CIFAR-10: its .bin files. IDX: the image file, then the label file.
  std::vector<std::string> train;
  std::vector<std::string> validation;  // empty: there is none
};

// NotFound names what is missing.
absl::StatusOr<ImagePaths> FindImages(const config::ImageDataConfig& config);

}  // namespace shoal
