#include "runtime/data/images/folder_dataset.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

bool IsImageName(const std::string& name) {
  const std::string lower = absl::AsciiStrToLower(name);
  return !absl::StartsWith(name, ".") &&
         (absl::EndsWith(lower, ".jpg") || absl::EndsWith(lower, ".jpeg") || absl::EndsWith(lower, ".png"));
}

absl::Status CannotList(const std::string& path, const std::error_code& error) {
  const std::string message = absl::StrCat(path, ": cannot be listed: ", error.message());
  return error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory
             ? absl::NotFoundError(message)
             : EnvironmentError(message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FolderDataset>> FolderDataset::Open(const std::string& path, const Options& options) {
  auto dataset = std::make_unique<FolderDataset>();
  dataset->path_ = path;
  std::error_code error, no_target;  // of listing; of a link that leads nowhere
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!absl::StartsWith(name, ".") && it->is_directory(no_target)) dataset->classes_.push_back(name);
  }
  if (error) return CannotList(path, error);
  if (dataset->classes_.empty()) {
    return absl::NotFoundError(
        absl::StrCat(path, ": has no class folders; images are expected as ", path, "/CLASS/NAME.jpg"));
  }
  std::sort(dataset->classes_.begin(), dataset->classes_.end());
  for (const std::string& name : dataset->classes_) SHOAL_RETURN_IF_ERROR(dataset->AddClass(name));
  SHOAL_RETURN_IF_ERROR(dataset->ReadHeaders(options));
  return dataset;
}

absl::Status FolderDataset::AddClass(const std::string& folder) {
  const std::string root = absl::StrCat(path_, "/", folder);
  const auto label = static_cast<int32_t>(std::find(classes_.begin(), classes_.end(), folder) - classes_.begin());
  std::vector<std::string> names;
  std::error_code error, no_target;
  constexpr auto kFollow = fs::directory_options::follow_directory_symlink;
  for (fs::recursive_directory_iterator it(root, kFollow, error), end; !error && it != end; it.increment(error)) {
    if (IsImageName(it->path().filename().string()) && !it->is_directory(no_target))
      names.push_back(it->path().lexically_relative(root).string());
  }
  if (error) return CannotList(root, error);
  if (names.empty()) return absl::NotFoundError(absl::StrCat(root, ": the class has no .jpg, .jpeg or .png file"));
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    files_.push_back({static_cast<int64_t>(names_.size()), label, {}});
    names_.append(name).push_back('\0');
  }
  return absl::OkStatus();
}

absl::Status FolderDataset::ReadHeaders(const Options& options) {
  std::vector<absl::Status> bad(files_.size());
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < size();) {
      auto shape = ReadImageHeader(Name(i));
      if (shape.ok())
        files_[i].shape = *shape;
      else
        bad[i] = shape.status();
    }
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < options.threads; ++t) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  std::vector<int64_t> left(classes_.size());
  size_t kept = 0;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (bad[i].ok()) {
      ++left[files_[i].label];
      files_[kept++] = files_[i];
    } else if (options.skip != nullptr) {
      options.skip->Add(bad[i]);
    } else {
      return Annotate(bad[i], "unreadable image (data.images.skip_bad_images: true leaves such files out)");
    }
  }
  files_.resize(kept);
  for (size_t c = 0; c < classes_.size(); ++c) {
    if (left[c] == 0)
      return absl::DataLossError(absl::StrCat(path_, "/", classes_[c], ": none of the class's images is readable"));
  }
  return absl::OkStatus();
}

std::string FolderDataset::Name(int64_t i) const {
  return absl::StrCat(path_, "/", classes_[files_[i].label], "/", names_.c_str() + files_[i].name);
}

absl::Status FolderDataset::Decode(int64_t i, int channels, double least_scale, DecodeScratch& scratch,
                                   Image& out) const {
  const std::string path = Name(i);
  SHOAL_RETURN_IF_ERROR(ReadWholeFile(path, scratch.file));
  SHOAL_RETURN_IF_ERROR(Annotate(DecodeImageFile(scratch.file, channels, least_scale, scratch.wide, out), path));
  const ImageShape& want = files_[i].shape;
  for (const int shrunk : {1, 2, 4, 8}) {
    if (out.width() == (want.width + shrunk - 1) / shrunk && out.height() == (want.height + shrunk - 1) / shrunk)
      return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(path, ": is ", out.width(), " x ", out.height(), " pixels, and was ",
                                          want.width, " x ", want.height,
                                          " when training began: the file has changed"));
}

}  // namespace shoal
