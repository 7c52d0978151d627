#include "runtime/data/images/image_paths.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Config = config::ImageDataConfig;
using Paths = std::vector<std::string>;

enum class Part : uint8_t { kTrain, kValidation };

bool IsFolder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

bool IsIdxImages(absl::string_view name) {
  return absl::StrContains(name, "images") && absl::StrContains(name, "idx3-ubyte");
}

absl::StatusOr<Config::Format> FormatOf(const std::string& path) {
  if (!PosixFiles().Exists(path)) return absl::NotFoundError(absl::StrCat(path, ": no such file or folder"));
  Paths names = {path};
  if (IsFolder(path)) {
    SHOAL_ASSIGN_OR_RETURN(names, PosixFiles().List(path));
  }
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".bin")) return Config::CIFAR10;
    if (IsIdxImages(name)) return Config::IDX;
  }
  if (IsFolder(path)) return Config::FOLDER;
  return absl::NotFoundError(
      absl::StrCat(path,
                   ": neither a folder nor a .bin (CIFAR-10) nor an images-idx3-ubyte file; data.images.format "
                   "names the format if the file is called otherwise"));
}

// Files of `folder` that begin and end so, sorted.
absl::StatusOr<Paths> Matching(const std::string& folder, absl::string_view begin, absl::string_view end) {
  SHOAL_ASSIGN_OR_RETURN(const Paths names, PosixFiles().List(folder));
  Paths found;
  for (const std::string& name : names) {
    if (absl::StartsWith(name, begin) && absl::EndsWith(name, end)) found.push_back(absl::StrCat(folder, "/", name));
  }
  return found;
}

absl::StatusOr<Paths> Cifar10Files(const std::string& path, Part part) {
  if (!IsFolder(path)) return Paths{path};
  return Matching(path, part == Part::kTrain ? "data_batch_" : "test_batch", ".bin");
}

// The labels of train-images-idx3-ubyte.gz are train-labels-idx1-ubyte, with or without .gz.
absl::StatusOr<Paths> WithLabels(const std::string& images) {
  const std::filesystem::path path(images);
  const std::string plain = absl::StrReplaceAll(std::string(absl::StripSuffix(path.filename().string(), ".gz")),
                                                {{"images", "labels"}, {"idx3", "idx1"}});
  for (const char* ending : {"", ".gz"}) {
    const std::string labels = (path.parent_path() / (plain + ending)).string();
    if (PosixFiles().Exists(labels)) return Paths{images, labels};
  }
  return absl::NotFoundError(absl::StrCat(images, ": its labels are not beside it, as ", plain, " or ", plain, ".gz"));
}

absl::StatusOr<Paths> IdxFiles(const std::string& path, Part part) {
  if (!IsFolder(path)) return WithLabels(path);
  SHOAL_ASSIGN_OR_RETURN(const Paths files, Matching(path, part == Part::kTrain ? "train-" : "t10k-", ""));
  // A plain file sorts before its .gz.
  for (const std::string& file : files) {
    if (IsIdxImages(file)) return WithLabels(file);
  }
  return Paths();
}

Paths ClassFolders(const std::string& path, Part part) {
  const std::string train = absl::StrCat(path, "/train");
  if (part == Part::kTrain) return {IsFolder(train) ? train : path};
  if (!IsFolder(train)) return {};
  for (const char* name : {"val", "validation", "test"}) {
    if (const std::string folder = absl::StrCat(path, "/", name); IsFolder(folder)) return {folder};
  }
  return {};
}

absl::StatusOr<Paths> FilesOf(Config::Format format, const std::string& path, Part part) {
  switch (format) {
    case Config::CIFAR10:
      return Cifar10Files(path, part);
    case Config::IDX:
      return IdxFiles(path, part);
    default:
      return ClassFolders(path, part);
  }
}

}  // namespace

absl::StatusOr<ImagePaths> FindImages(const Config& config) {
  const std::string& root = config.has_path() ? config.path() : config.train();
  ImagePaths paths;
  SHOAL_ASSIGN_OR_RETURN(paths.format, FormatOf(root));
  if (config.format() != Config::AUTO) paths.format = config.format();
  if (config.has_path()) {
    SHOAL_ASSIGN_OR_RETURN(paths.train, FilesOf(paths.format, root, Part::kTrain));
    SHOAL_ASSIGN_OR_RETURN(paths.validation, FilesOf(paths.format, root, Part::kValidation));
  } else if (paths.format == Config::FOLDER) {
    paths.train = {config.train()};
    if (config.has_validation()) paths.validation = {config.validation()};
  } else {
    SHOAL_ASSIGN_OR_RETURN(paths.train, FilesOf(paths.format, config.train(), Part::kTrain));
    if (config.has_validation()) {
      SHOAL_ASSIGN_OR_RETURN(paths.validation, FilesOf(paths.format, config.validation(), Part::kValidation));
    }
  }
  const char* wanted = paths.format == Config::CIFAR10 ? "data_batch_*.bin and test_batch.bin"
                                                       : "train-images-idx3-ubyte and t10k-images-idx3-ubyte";
  if (paths.train.empty()) return absl::NotFoundError(absl::StrCat(root, ": has no training file; expected ", wanted));
  if (paths.validation.empty() && config.has_validation()) {
    return absl::NotFoundError(absl::StrCat(config.validation(), ": has no validation file; expected ", wanted));
  }
  return paths;
}

}  // namespace shoal
