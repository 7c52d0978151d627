#include "parallel/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using nlohmann::json;

const char* Code(DType t) {
  switch (t) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF64:
      return "F64";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

bool FromCode(const std::string& code, DType* t) {
  if (code == "BOOL") {  // masks that some models carry along
    *t = DType::kU8;
    return true;
  }
  for (const DType candidate : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8}) {
    if (code != Code(candidate)) continue;
    *t = candidate;
    return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensorsHeader(absl::Span<const char> file) {
  const auto size = static_cast<int64_t>(file.size());
  uint64_t length = 0;
  if (size < 8)
    return absl::DataLossError(absl::StrCat("is ", size, " bytes long; a safetensors file has at least 8: truncated"));
  std::memcpy(&length, file.data(), 8);
  if (length > static_cast<uint64_t>(size - 8))
    return absl::DataLossError(
        absl::StrCat("its header has ", length, " bytes, the file ", size, ": truncated or no safetensors file"));
  const json header = json::parse(file.data() + 8, file.data() + 8 + length, nullptr, false);
  if (!header.is_object()) return absl::DataLossError("its header is no JSON object");
  const int64_t base = 8 + static_cast<int64_t>(length);
  std::map<std::string, SafetensorsEntry> entries;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    const auto wrong = [&name = name](absl::string_view what) {
      return absl::DataLossError(absl::StrCat("tensor '", name, "': ", what));
    };
    if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() || !value.contains("shape") ||
        !value["shape"].is_array() || !value.contains("data_offsets") || !value["data_offsets"].is_array() ||
        value["data_offsets"].size() != 2) {
      return wrong("needs dtype, shape and data_offsets");
    }
    SafetensorsEntry entry;
    if (!FromCode(value["dtype"].get<std::string>(), &entry.dtype))
      return wrong(absl::StrCat("dtype ", value["dtype"].get<std::string>(), " is not supported"));
    int64_t elements = 1;
    for (const auto& extent : value["shape"]) {
      if (!extent.is_number_unsigned() || extent.get<uint64_t>() > (uint64_t{1} << 40))
        return wrong("an extent of its shape is no sensible number");
      const auto n = static_cast<int64_t>(extent.get<uint64_t>());
      if (n > 0 && elements > (int64_t{1} << 48) / n) return wrong("its shape is too large");
      elements *= n;
      entry.shape.push_back(n);
    }
    for (const auto& offset : value["data_offsets"]) {
      if (!offset.is_number_unsigned() || offset.get<uint64_t>() > static_cast<uint64_t>(size))
        return wrong("its data_offsets lie outside the file");
    }
    const auto begin = static_cast<int64_t>(value["data_offsets"][0].get<uint64_t>()),
               end = static_cast<int64_t>(value["data_offsets"][1].get<uint64_t>());
    entry.offset = base + begin;
    entry.bytes = elements * DTypeBytes(entry.dtype);
    if (end < begin || end - begin != entry.bytes)
      return wrong(absl::StrCat("its shape ", ShapeString(entry.shape), " needs ", entry.bytes,
                                " bytes, its data_offsets give ", end - begin));
    if (base + end > size)
      return wrong(absl::StrCat("ends at byte ", base + end, " of a file of ", size, ": truncated"));
    if (entry.bytes > 0) ranges.emplace_back(begin, end);
    entries[name] = entry;
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) return absl::DataLossError("two tensors overlap");
  }
  return entries;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  auto file = std::make_unique<SafetensorsFile>();
  SHOAL_ASSIGN_OR_RETURN(file->file_, MappedFile::Open(path));
  auto entries = ParseSafetensorsHeader({file->file_->data(), static_cast<size_t>(file->file_->size())});
  if (!entries.ok()) return Annotate(entries.status(), path);
  file->entries_ = *std::move(entries);
  return file;
}

Tensor SafetensorsFile::View(const SafetensorsEntry& entry) const {
  // Writers other than ours may leave values at any byte.
  if (entry.offset % DTypeBytes(entry.dtype) != 0) {
    Tensor aligned = Tensor::Zeros(entry.shape, entry.dtype);
    std::memcpy(aligned.raw(), file_->data() + entry.offset, static_cast<size_t>(entry.bytes));
    return aligned;
  }
  auto storage = std::make_shared<Storage>(const_cast<char*>(file_->data()), file_->size(), DeviceKind::kCpu, file_);
  return Tensor(std::move(storage), entry.offset, entry.shape, entry.dtype);
}

std::string SafetensorsHeader(absl::Span<const NamedTensor> tensors) {
  json header = {{"__metadata__", {{"format", "pt"}}}};  // transformers asks for it
  int64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", Code(tensor.dtype())},
                    {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
                    {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text;
}

absl::Status WriteSafetensors(FileSystem& files, const std::string& path, absl::Span<const NamedTensor> tensors) {
  SHOAL_ASSIGN_OR_RETURN(auto file, files.Create(path));
  SHOAL_RETURN_IF_ERROR(file->Append(SafetensorsHeader(tensors)));
  for (const auto& [name, tensor] : tensors) {
    constexpr int64_t kPiece = 16 << 20;
    for (int64_t at = 0; at < tensor.bytes(); at += kPiece) {
      SHOAL_RETURN_IF_ERROR(file->Append(absl::string_view(
          static_cast<const char*>(tensor.raw()) + at, static_cast<size_t>(std::min(kPiece, tensor.bytes() - at)))));
    }
  }
  SHOAL_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace shoal
