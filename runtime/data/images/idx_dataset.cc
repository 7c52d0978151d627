#include "runtime/data/images/idx_dataset.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_file.h"

namespace shoal {
namespace {

// Plain or gzip: zlib's reader takes both.
absl::StatusOr<std::string> ReadMaybeGzip(const std::string& path) {
  errno = 0;
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  gzbuffer(file, 1 << 17);
  std::string bytes;
  std::string piece(1 << 20, '\0');
  int n = 0;
  while ((n = gzread(file, piece.data(), static_cast<unsigned>(piece.size()))) > 0) bytes.append(piece.data(), n);
  int code = Z_OK;
  const std::string message = gzerror(file, &code);
  gzclose(file);
  if (n < 0 || code != Z_OK) return absl::DataLossError(absl::StrCat(path, ": cannot be unpacked: ", message));
  return bytes;
}

absl::StatusOr<ParsedIdx> ParseNamed(const std::string& path, absl::string_view bytes, int dimensions) {
  auto parsed = ParseIdx(bytes, dimensions);
  if (!parsed.ok()) return absl::DataLossError(absl::StrCat(path, ": ", parsed.status().message()));
  return parsed;
}

}  // namespace

absl::StatusOr<ParsedIdx> ParseIdx(absl::string_view bytes, int dimensions) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const size_t header = 4 + 4 * static_cast<size_t>(dimensions);
  if (bytes.size() < header) {
    return absl::DataLossError(
        absl::StrCat("is ", bytes.size(), " bytes long; its header alone has ", header, ": the file is truncated"));
  }
  if (byte(0) != 0 || byte(1) != 0 || byte(2) != 8 || byte(3) != dimensions) {
    return absl::DataLossError(absl::StrCat("begins with bytes ", byte(0), " ", byte(1), " ", byte(2), " ", byte(3),
                                            "; an IDX file of bytes in ", dimensions, " dimensions begins with 0 0 8 ",
                                            dimensions));
  }
  ParsedIdx parsed;
  int64_t size = 1;
  for (int d = 0; d < dimensions; ++d) {
    const size_t at = 4 + 4 * static_cast<size_t>(d);
    const int64_t extent = int64_t{byte(at)} << 24 | byte(at + 1) << 16 | byte(at + 2) << 8 | byte(at + 3);
    const auto most = static_cast<int64_t>(bytes.size());
    // An extent above the file's length is damage, and would overflow the product.
    if (extent < 1 || extent > most || size * extent > most) {
      return absl::DataLossError(absl::StrCat("has extent ", extent, " in dimension ", d, ", but is ", bytes.size(),
                                              " bytes long: truncated or damaged"));
    }
    size *= extent;
    parsed.shape.push_back(extent);
  }
  if (static_cast<size_t>(size) + header != bytes.size()) {
    return absl::DataLossError(absl::StrCat("is ", bytes.size(), " bytes long, but its header and ", size,
                                            " elements make ", static_cast<size_t>(size) + header));
  }
  parsed.elements = bytes.substr(header);
  return parsed;
}

absl::StatusOr<std::unique_ptr<IdxDataset>> IdxDataset::Open(const std::string& images_path,
                                                             const std::string& labels_path, int classes) {
  auto dataset = std::make_unique<IdxDataset>();
  dataset->path_ = images_path;
  SHOAL_ASSIGN_OR_RETURN(dataset->image_bytes_, ReadMaybeGzip(images_path));
  SHOAL_ASSIGN_OR_RETURN(dataset->label_bytes_, ReadMaybeGzip(labels_path));
  SHOAL_ASSIGN_OR_RETURN(dataset->images_, ParseNamed(images_path, dataset->image_bytes_, 3));
  SHOAL_ASSIGN_OR_RETURN(dataset->labels_, ParseNamed(labels_path, dataset->label_bytes_, 1));
  if (dataset->images_.shape[0] != dataset->labels_.shape[0]) {
    return absl::DataLossError(absl::StrCat(images_path, ": has ", dataset->images_.shape[0], " images, but ",
                                            labels_path, " ", dataset->labels_.shape[0], " labels"));
  }
  int greatest = 0;
  for (int64_t i = 0; i < dataset->size(); ++i) {
    const int label = dataset->label(i);
    greatest = std::max(greatest, label);
    if (classes > 0 && label >= classes) {
      return absl::DataLossError(
          absl::StrCat(labels_path, ": label ", i, " is ", label, ", but the training set's are 0 to ", classes - 1));
    }
  }
  for (int c = 0; c < (classes > 0 ? classes : greatest + 1); ++c) dataset->classes_.push_back(absl::StrCat(c));
  return dataset;
}

std::string IdxDataset::Name(int64_t i) const { return absl::StrCat(path_, ": image ", i); }

absl::Status IdxDataset::Decode(int64_t i, int channels, double /*least_scale*/, DecodeScratch& /*scratch*/,
                                Image& out) const {
  const ImageShape stored = shape(i);
  const auto* pixels = reinterpret_cast<const uint8_t*>(images_.elements.data()) + i * stored.size();
  ConvertChannels({pixels, stored.width, stored.height, 1, stored.width}, channels, out);
  return absl::OkStatus();
}

}  // namespace shoal
