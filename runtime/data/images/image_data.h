// ImageData: a training set, a held-out set and the configuration that reads them, checked as far as it can be before
// training starts.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/data/images/bad_images.h"
#include "runtime/data/images/image_dataset.h"
#include "runtime/runtime.pb.h"

namespace shoal {

class ImageData {
 public:
  // Opens data.images. With `path`, the usual names are looked for below it:
  //   folders   train/ beside val/, validation/ or test/; else the class folders themselves
  //   CIFAR-10  data_batch_*.bin and test_batch.bin
  //   IDX       train-images-idx3-ubyte and t10k-images-idx3-ubyte with their labels, each with or without .gz
  // Without a validation set a share of the training images is held out, chosen by index alone: the same in every run.
  // The headers of all files are read. DataLoss and NotFound name the file: damage, classes that differ between both
  // sets, channels other than the configured, images smaller than the crop, labels out of range, empty classes.
  static absl::StatusOr<std::unique_ptr<ImageData>> Open(const config::ImageDataConfig& config);

  const ImageDataset& train() const { return *train_; }        // an epoch
  const ImageDataset& held_out() const { return *held_out_; }  // may be empty (held_out: 0)
  int classes() const { return static_cast<int>(train_->classes().size()); }
  int size() const { return config_.size(); }          // pixels of a side of what the model sees
  int channels() const { return config_.channels(); }  // of what the model sees
  // With every default of the format filled in.
  const config::ImageDataConfig& config() const { return config_; }
  BadImages& bad_images() const { return *bad_images_; }
  // What was opened, held out and left out, for the log.
  std::string Summary() const;

 private:
  config::ImageDataConfig config_;
  std::shared_ptr<const ImageDataset> train_, held_out_;
  bool own_validation_ = false;  // held_out_ is a set of its own
  std::unique_ptr<BadImages> bad_images_ = std::make_unique<BadImages>();
};

}  // namespace shoal
