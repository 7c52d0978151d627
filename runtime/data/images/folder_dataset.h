// Folders of JPEG and PNG files, one folder per class: PATH/CLASS/.../NAME.jpg. Sorted folder names are the classes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/images/bad_images.h"
#include "runtime/data/images/image_dataset.h"

namespace shoal {

class FolderDataset : public ImageDataset {
 public:
  struct Options {
    int threads = 1;            // that read headers
    BadImages* skip = nullptr;  // where unreadable files go; null: the first one is the error
  };
  // Takes files that end in .jpg, .jpeg or .png in any case, below each class folder to any depth, in sorted order, and
  // reads their headers. Files of other endings and names that begin with a dot are passed over. NotFound: no such
  // folder, no class folders, a class without images. DataLoss: a file whose header is not an image's.
  static absl::StatusOr<std::unique_ptr<FolderDataset>> Open(const std::string& path, const Options& options);

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  const std::vector<std::string>& classes() const override { return classes_; }
  int32_t label(int64_t i) const override { return files_[i].label; }
  ImageShape shape(int64_t i) const override { return files_[i].shape; }
  std::string Name(int64_t i) const override;
  absl::Status Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch, Image& out) const override;

 private:
  struct File {
    int64_t name;  // where its path below the class folder begins in names_; a zero byte ends it
    int32_t label;
    ImageShape shape;
  };
  absl::Status AddClass(const std::string& folder);
  absl::Status ReadHeaders(const Options& options);
  std::string path_, names_;
  std::vector<std::string> classes_;
  std::vector<File> files_;
};

}  // namespace shoal
