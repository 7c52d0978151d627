// Checks of data.images, and the defaults that depend on the data's format.
#pragma once

#include "absl/status/status.h"
#include "runtime/data/images/image.h"
#include "runtime/runtime.pb.h"

namespace shoal {

// All errors that can be known without the files: InvalidArgument, one a line, each beginning with the field's path
// (data.images.size ...).
absl::Status CheckImageConfig(const config::ImageDataConfig& config);

// Fills in what is unset, for data of config.format() (not AUTO) with `channels` channels, whose images all have
// `common` width and height (0 x 0: they differ). InvalidArgument: CIFAR-10 and IDX images that are not square and a
// configuration without size.
absl::Status FillImageDefaults(const ImageShape& common, int channels, config::ImageDataConfig& config);

}  // namespace shoal
