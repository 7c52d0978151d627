// The workload of image models: labelled images, cropped and augmented (runtime/data/images).
#pragma once

#include <memory>

#include "launch/workload.h"
#include "models/resnet_spec.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<Workload>> OpenImageWorkload(const config::Job& job);

// What the job's images say of themselves, read from their headers.
absl::StatusOr<ImageFacts> ReadImageFacts(const config::ImageDataConfig& config);

}  // namespace shoal
