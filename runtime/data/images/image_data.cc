#include "runtime/data/images/image_data.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/data/images/cifar10_dataset.h"
#include "runtime/data/images/folder_dataset.h"
#include "runtime/data/images/idx_dataset.h"
#include "runtime/data/images/image_config.h"
#include "runtime/data/images/image_paths.h"
#include "runtime/data/images/image_transform.h"

namespace shoal {
namespace {

using Config = config::ImageDataConfig;
using DatasetPtr = std::shared_ptr<const ImageDataset>;

// `classes`: of the training set, when this is the validation set; else 0.
absl::StatusOr<DatasetPtr> OpenSet(const Config& config, const std::vector<std::string>& paths, int classes,
                                   BadImages& bad) {
  switch (config.format()) {
    case Config::CIFAR10:
      return Cifar10Dataset::Open(paths);
    case Config::IDX:
      return IdxDataset::Open(paths[0], paths[1], classes);
    default:
      return FolderDataset::Open(paths[0], {.threads = std::max(1, config.prefetch_threads()),
                                            .skip = config.skip_bad_images() ? &bad : nullptr});
  }
}

std::string OnlyIn(const std::vector<std::string>& these, const std::vector<std::string>& those) {
  constexpr size_t kNamed = 20;
  std::vector<std::string> only;
  std::set_difference(these.begin(), these.end(), those.begin(), those.end(), std::back_inserter(only));
  const size_t count = only.size();
  only.resize(std::min(count, kNamed));
  if (count > kNamed) only.push_back(absl::StrCat("and ", count - kNamed, " more"));
  return only.empty() ? "none" : absl::StrJoin(only, ", ");
}

absl::Status CheckClasses(const ImageDataset& train, const ImageDataset& validation, const std::string& train_path,
                          const std::string& validation_path) {
  if (train.classes() == validation.classes()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("classes differ: only in ", train_path, ": ",
                                          OnlyIn(train.classes(), validation.classes()), "; only in ", validation_path,
                                          ": ", OnlyIn(validation.classes(), train.classes())));
}

// Colour if any image is.
int StoredChannels(const ImageDataset& data) {
  for (int64_t i = 0; i < data.size(); ++i) {
    if (data.shape(i).channels >= 3) return 3;
  }
  return 1;
}

absl::Status CheckImages(const ImageDataset& data, ImageUse use, const Config& config) {
  constexpr const char* kNames[] = {"", " (grey)", " (grey with alpha)", " (colour)", " (colour with alpha, or CMYK)"};
  for (int64_t i = 0; i < data.size(); ++i) {
    const ImageShape shape = data.shape(i);
    if (shape.channels != config.channels() && !config.convert_channels()) {
      return absl::DataLossError(absl::StrCat(
          data.Name(i), ": has ", shape.channels, kNames[shape.channels], " channels, but the data set has ",
          config.channels(), " (data.images.channels); data.images.convert_channels: true converts such images"));
    }
    SHOAL_RETURN_IF_ERROR(Annotate(CheckImageFits(shape, use, config), data.Name(i)));
  }
  return absl::OkStatus();
}

// A share of the images by lot, the same for every seed and run; at least one where there are two.
struct Split {
  std::vector<int64_t> train, held_out;
};
Split HoldOut(int64_t images, double share) {
  Split split;
  const Rng rng({0, RngPurpose::kData, NameHash("held_out_images")});
  int64_t least = 0;
  double least_lot = 2;
  for (int64_t i = 0; i < images; ++i) {
    const double lot = rng.Uniform53(0, static_cast<uint64_t>(i));
    if (lot < least_lot) least_lot = lot, least = i;
    (lot < share ? split.held_out : split.train).push_back(i);
  }
  if (share > 0 && images > 1 && split.held_out.empty()) {
    split.held_out.push_back(least);
    split.train.erase(split.train.begin() + least);
  }
  return split;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ImageData>> ImageData::Open(const Config& given) {
  SHOAL_RETURN_IF_ERROR(CheckImageConfig(given));
  auto data = std::make_unique<ImageData>();
  Config& config = data->config_;
  config = given;
  SHOAL_ASSIGN_OR_RETURN(const ImagePaths paths, FindImages(config));
  config.set_format(paths.format);
  SHOAL_ASSIGN_OR_RETURN(data->train_, OpenSet(config, paths.train, 0, *data->bad_images_));
  SHOAL_RETURN_IF_ERROR(FillImageDefaults(paths.format == Config::FOLDER ? ImageShape{} : data->train_->shape(0),
                                          StoredChannels(*data->train_), config));
  SHOAL_RETURN_IF_ERROR(CheckImages(*data->train_, ImageUse::kTrain, config));
  if (!paths.validation.empty()) {
    SHOAL_ASSIGN_OR_RETURN(data->held_out_, OpenSet(config, paths.validation, data->classes(), *data->bad_images_));
    SHOAL_RETURN_IF_ERROR(CheckClasses(*data->train_, *data->held_out_, paths.train[0], paths.validation[0]));
  } else {
    Split split = HoldOut(data->train_->size(), config.held_out());
    data->held_out_ = std::make_shared<ImageSubset>(data->train_, std::move(split.held_out));
    data->train_ = std::make_shared<ImageSubset>(data->train_, std::move(split.train));
  }
  SHOAL_RETURN_IF_ERROR(CheckImages(*data->held_out_, ImageUse::kEvaluate, config));
  if (data->train_->size() == 0) {
    return absl::NotFoundError(
        absl::StrCat(paths.train[0], ": no image is left for training; data.images.held_out is ", config.held_out()));
  }
  data->own_validation_ = !paths.validation.empty();
  return data;
}

std::string ImageData::Summary() const {
  std::string text = absl::StrCat(Config::Format_Name(config_.format()), ": ", train_->size(), " training images of ",
                                  classes(), " classes, ", held_out_->size(),
                                  own_validation_ ? " in the validation set" : " held out of the training set", "; ",
                                  config_.size(), " x ", config_.size(), " x ", config_.channels(), ", crop ",
                                  Config::Crop_Name(config_.crop()), config_.flip() ? ", flip" : "");
  if (config_.has_randaugment()) {
    absl::StrAppend(&text, ", RandAugment ", config_.randaugment().layers(), " x ", config_.randaugment().magnitude());
  }
  const std::string bad = bad_images_->Summary();
  return bad.empty() ? text : absl::StrCat(text, "; ", bad);
}

}  // namespace shoal
