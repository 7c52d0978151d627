#include "runtime/data/images/cifar10_dataset.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

constexpr int64_t kPlane = 32 * 32, kRecord = 1 + 3 * kPlane;
constexpr int kClasses = 10;

std::vector<std::string> ClassNames(const std::string& first_file) {
  std::vector<std::string> names;
  const auto meta = PosixFiles().Read((std::filesystem::path(first_file).parent_path() / "batches.meta.txt").string());
  if (meta.ok()) {
    for (const absl::string_view line : absl::StrSplit(*meta, '\n')) {
      const absl::string_view name = absl::StripAsciiWhitespace(line);
      if (!name.empty()) names.emplace_back(name);
    }
  }
  if (names.size() == kClasses) return names;
  names.clear();
  for (int c = 0; c < kClasses; ++c) names.push_back(absl::StrCat(c));
  return names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cifar10Dataset>> Cifar10Dataset::Open(const std::vector<std::string>& paths) {
  auto dataset = std::make_unique<Cifar10Dataset>();
  dataset->paths_ = paths;
  for (const std::string& path : paths) {
    SHOAL_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
    if (file->size() == 0 || file->size() % kRecord != 0) {
      return absl::DataLossError(absl::StrCat(path, ": is ", file->size(),
                                              " bytes long, not a whole number of records of ", kRecord,
                                              ": truncated, or not CIFAR-10's binary version"));
    }
    for (int64_t r = 0; r < file->size() / kRecord; ++r) {
      const int label = static_cast<uint8_t>(file->data()[r * kRecord]);
      if (label >= kClasses)
        return absl::DataLossError(absl::StrCat(path, ": record ", r, " has label ", label, "; CIFAR-10's are 0 to 9"));
    }
    dataset->starts_.push_back(dataset->starts_.back() + file->size() / kRecord);
    dataset->files_.push_back(std::move(file));
  }
  if (dataset->size() == 0) return absl::NotFoundError("no CIFAR-10 file is given");
  dataset->classes_ = ClassNames(paths[0]);
  return dataset;
}

size_t Cifar10Dataset::FileOf(int64_t i) const {
  return static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), i) - starts_.begin() - 1);
}

const char* Cifar10Dataset::Record(int64_t i) const {
  const size_t file = FileOf(i);
  return files_[file]->data() + (i - starts_[file]) * kRecord;
}

std::string Cifar10Dataset::Name(int64_t i) const {
  const size_t file = FileOf(i);
  return absl::StrCat(paths_[file], ": record ", i - starts_[file]);
}

absl::Status Cifar10Dataset::Decode(int64_t i, int channels, double /*least_scale*/, DecodeScratch& scratch,
                                    Image& out) const {
  Image& pixels = channels == 3 ? out : scratch.wide;
  pixels.Reshape({32, 32, 3});
  const auto* red = reinterpret_cast<const uint8_t*>(Record(i)) + 1;
  const uint8_t *green = red + kPlane, *blue = green + kPlane;
  uint8_t* to = pixels.data();
  for (int64_t p = 0; p < kPlane; ++p) {
    to[3 * p] = red[p];
    to[3 * p + 1] = green[p];
    to[3 * p + 2] = blue[p];
  }
  if (channels != 3) ConvertChannels(pixels.view(), channels, out);
  return absl::OkStatus();
}

}  // namespace shoal
