#include "runtime/data/indexed_dataset.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
constexpr int64_t kIndexHeader = 9 + 8 + 1 + 8 + 8;
constexpr int32_t kLlmcMagic = 20240520;
constexpr int64_t kLlmcHeader = 256 * 4;
constexpr int32_t kLlmcEndOfText = 50256;

template <class T>
T Load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}
template <class T>
void Store(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

struct Code {
  int bytes;
  bool is_signed;
};
// Megatron-LM's dtype codes of integers.
absl::StatusOr<Code> CodeOf(uint8_t code) {
  switch (code) {
    case 1:
      return Code{1, false};
    case 2:
      return Code{1, true};
    case 3:
      return Code{2, true};
    case 4:
      return Code{4, true};
    case 5:
      return Code{8, true};
    case 8:
      return Code{2, false};
    default:
      return absl::DataLossError(
          absl::StrCat("token dtype code is ", code, "; it takes 1, 2, 3, 4, 5 or 8 (integers)"));
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return absl::NotFoundError(absl::StrCat(path, ": not a regular file"));
  }
  void* data = nullptr;
  if (info.st_size > 0) data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (data == MAP_FAILED) return EnvironmentError(absl::StrCat(path, ": cannot be mapped: ", std::strerror(error)));
  return std::shared_ptr<MappedFile>(new MappedFile(static_cast<const char*>(data), info.st_size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
}

absl::StatusOr<ParsedIndex> ParseIndex(absl::Span<const char> bytes, int64_t bin_bytes) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  if (size < kIndexHeader)
    return absl::DataLossError(
        absl::StrCat("is ", size, " bytes long; its header alone has ", kIndexHeader, ": the file is truncated"));
  const char* at = bytes.data();
  if (std::memcmp(at, kMagic, sizeof(kMagic)) != 0)
    return absl::DataLossError("does not begin with MMIDIDX: not a Megatron-LM index");
  const auto version = Load<uint64_t>(at + 9);
  if (version != 1) return absl::DataLossError(absl::StrCat("has version ", version, "; this build reads 1"));
  SHOAL_ASSIGN_OR_RETURN(const Code code, CodeOf(Load<uint8_t>(at + 17)));
  const auto sequences = Load<uint64_t>(at + 18), borders = Load<uint64_t>(at + 26);
  constexpr uint64_t kMost = uint64_t{1} << 40;
  if (sequences > kMost || borders > kMost || borders == 0) {
    return absl::DataLossError(
        absl::StrCat("counts ", sequences, " sequences and ", borders, " document borders: the header is damaged"));
  }
  const int64_t needed = kIndexHeader + static_cast<int64_t>(sequences * 12 + borders * 8);
  if (size < needed) {
    return absl::DataLossError(absl::StrCat("is ", size, " bytes long, but ", sequences, " sequences and ", borders,
                                            " borders need ", needed, ": the file is truncated"));
  }
  const char* lengths = at + kIndexHeader;
  const char* offsets = lengths + sequences * 4;
  const char* documents = offsets + sequences * 8;
  // Sequences must lie one after the other, as every writer of the format leaves them, so that documents are runs of
  // tokens.
  std::vector<int64_t> sequence_start(sequences + 1);
  for (uint64_t i = 0; i < sequences; ++i) {
    const auto length = Load<int32_t>(lengths + 4 * i);
    const auto offset = Load<int64_t>(offsets + 8 * i);
    if (length < 0) return absl::DataLossError(absl::StrCat("sequence ", i, " has length ", length));
    if (offset != sequence_start[i] * code.bytes) {
      return absl::DataLossError(absl::StrCat("sequence ", i, " starts at byte ", offset,
                                              ", the ones before it end at ", sequence_start[i] * code.bytes));
    }
    sequence_start[i + 1] = sequence_start[i] + length;
  }
  if (sequence_start.back() * code.bytes != bin_bytes) {
    return absl::DataLossError(absl::StrCat("counts ", sequence_start.back(), " tokens of ", code.bytes,
                                            " bytes, but the .bin beside it has ", bin_bytes,
                                            " bytes: the two do not belong together, or one is truncated"));
  }
  ParsedIndex index{code.bytes, code.is_signed, {}};
  int64_t last = 0;
  for (uint64_t i = 0; i < borders; ++i) {
    const auto border = Load<int64_t>(documents + 8 * i);
    if (border < last || border > static_cast<int64_t>(sequences) || (i == 0 && border != 0)) {
      return absl::DataLossError(
          absl::StrCat("document border ", i, " is sequence ", border, ", after ", last, " and of ", sequences));
    }
    last = border;
    index.starts.push_back(sequence_start[border]);
  }
  if (last != static_cast<int64_t>(sequences)) {
    return absl::DataLossError(absl::StrCat("documents end at sequence ", last, ", but there are ", sequences));
  }
  return index;
}

absl::StatusOr<std::unique_ptr<TokenDataset>> TokenDataset::Open(const std::string& path) {
  auto dataset = std::make_unique<TokenDataset>();
  std::string prefix = path;
  for (const char* ending : {".bin", ".idx"}) {
    if (absl::EndsWith(prefix, ending)) prefix.resize(prefix.size() - 4);
  }
  dataset->path_ = path;
  const bool has_index = ::access((prefix + ".idx").c_str(), F_OK) == 0;
  if (!has_index && absl::EndsWith(path, ".bin") && ::access(path.c_str(), F_OK) == 0) {
    SHOAL_RETURN_IF_ERROR(dataset->OpenLlmc(path));
  } else {
    SHOAL_RETURN_IF_ERROR(dataset->OpenIndexed(prefix));
  }
  if (dataset->documents() == 0 || dataset->tokens() == 0) {
    return absl::DataLossError(absl::StrCat(path, ": the dataset is empty; build one with `shoal data build`"));
  }
  return dataset;
}

absl::Status TokenDataset::OpenIndexed(const std::string& prefix) {
  auto idx = MappedFile::Open(prefix + ".idx");
  if (!idx.ok()) return Annotate(idx.status(), "dataset (a .bin/.idx pair; make one with `shoal data build`)");
  auto bin = MappedFile::Open(prefix + ".bin");
  if (!bin.ok()) return Annotate(bin.status(), "dataset: its .idx is there, its .bin is not");
  bin_ = *bin;
  auto index = ParseIndex({(*idx)->data(), static_cast<size_t>((*idx)->size())}, bin_->size());
  if (!index.ok()) return absl::DataLossError(absl::StrCat(prefix, ".idx: ", index.status().message()));
  base_ = bin_->data();
  token_bytes_ = index->token_bytes;
  token_signed_ = index->token_signed;
  starts_ = std::move(index->starts);
  return absl::OkStatus();
}

absl::Status TokenDataset::OpenLlmc(const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(bin_, MappedFile::Open(path));
  const auto wrong = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(path, " (no .idx beside it, so read as an llm.c shard): ", what));
  };
  if (bin_->size() < kLlmcHeader)
    return wrong(absl::StrCat("is ", bin_->size(), " bytes long, its header alone has ", kLlmcHeader));
  const auto magic = Load<int32_t>(bin_->data()), version = Load<int32_t>(bin_->data() + 4),
             count = Load<int32_t>(bin_->data() + 8);
  if (magic != kLlmcMagic) return wrong(absl::StrCat("begins with ", magic, ", not with ", kLlmcMagic));
  if (version != 1) return wrong(absl::StrCat("has version ", version, "; this build reads 1 (16-bit tokens)"));
  if (count < 0 || kLlmcHeader + 2 * int64_t{count} != bin_->size()) {
    return wrong(absl::StrCat("counts ", count, " tokens, which need ", kLlmcHeader + 2 * int64_t{count},
                              " bytes; it has ", bin_->size(), ": truncated"));
  }
  base_ = bin_->data() + kLlmcHeader;
  token_bytes_ = 2;
  starts_ = {0};
  for (int64_t i = 1; i < count; ++i) {
    if (TokenAt(i) == kLlmcEndOfText) starts_.push_back(i);
  }
  starts_.push_back(count);
  return absl::OkStatus();
}

int32_t TokenDataset::TokenAt(int64_t i) const {
  switch (token_bytes_) {
    case 1:
      return token_signed_ ? Load<int8_t>(base_ + i) : Load<uint8_t>(base_ + i);
    case 2:
      return token_signed_ ? Load<int16_t>(base_ + 2 * i) : Load<uint16_t>(base_ + 2 * i);
    case 4:
      return Load<int32_t>(base_ + 4 * i);
    default: {
      const auto wide = Load<int64_t>(base_ + 8 * i);
      return wide < 0 || wide > std::numeric_limits<int32_t>::max() ? -1 : static_cast<int32_t>(wide);
    }
  }
}

void TokenDataset::Read(int64_t document, int64_t begin, absl::Span<int32_t> out) const {
  const int64_t first = starts_[document] + begin;
  for (size_t i = 0; i < out.size(); ++i) out[i] = TokenAt(first + static_cast<int64_t>(i));
}

absl::Status TokenDataset::CheckTokens(int64_t vocabulary) const {
  if (token_bytes_ == 1 && !token_signed_ && vocabulary >= 256) return absl::OkStatus();
  for (int64_t d = 0; d < documents(); ++d) {
    for (int64_t i = starts_[d]; i < starts_[d + 1]; ++i) {
      const int32_t token = TokenAt(i);
      if (token >= 0 && token < vocabulary) continue;
      return absl::DataLossError(absl::StrCat(
          path_, ": document ", d, ", token ", i - starts_[d], " is ", token, "; the model's vocabulary has ",
          vocabulary, ". Set model.transformer.vocabulary to the tokenizer's, or use the dataset of this one"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DatasetWriter>> DatasetWriter::Create(FileSystem& files, const std::string& prefix,
                                                                     int64_t vocabulary) {
  const int bytes = vocabulary <= 256 ? 1 : vocabulary <= 65536 ? 2 : 4;
  auto writer = std::unique_ptr<DatasetWriter>(new DatasetWriter(files, prefix, bytes));
  SHOAL_ASSIGN_OR_RETURN(writer->bin_, files.Create(prefix + ".bin.tmp"));
  return writer;
}

absl::Status DatasetWriter::AddDocument(absl::Span<const int32_t> tokens) {
  for (int32_t token : tokens) {
    const int64_t limit = int64_t{1} << (8 * token_bytes_ - (token_bytes_ == 4 ? 1 : 0));
    if (token < 0 || token >= limit)
      return absl::InvalidArgumentError(absl::StrCat("token ", token, " does not fit in ", token_bytes_, " bytes"));
    buffer_.append(reinterpret_cast<const char*>(&token), static_cast<size_t>(token_bytes_));
  }
  lengths_.push_back(static_cast<int32_t>(tokens.size()));
  tokens_ += static_cast<int64_t>(tokens.size());
  if (buffer_.size() < (1 << 22)) return absl::OkStatus();
  SHOAL_RETURN_IF_ERROR(bin_->Append(buffer_));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status DatasetWriter::AddDocumentBytes(absl::string_view bytes) {
  if (bytes.size() > std::numeric_limits<int32_t>::max())
    return absl::InvalidArgumentError(absl::StrCat("a document of ", bytes.size(), " bytes; at most 2^31 - 1 fit"));
  std::vector<int32_t> tokens(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) tokens[i] = static_cast<uint8_t>(bytes[i]);
  return AddDocument(tokens);
}

absl::Status DatasetWriter::Finish() {
  SHOAL_RETURN_IF_ERROR(bin_->Append(buffer_));
  SHOAL_RETURN_IF_ERROR(bin_->Sync());
  SHOAL_RETURN_IF_ERROR(bin_->Close());
  std::string idx(kMagic, sizeof(kMagic));
  Store<uint64_t>(idx, 1);
  Store<uint8_t>(idx, token_bytes_ == 1 ? 1 : token_bytes_ == 2 ? 8 : 4);
  Store<uint64_t>(idx, lengths_.size());
  Store<uint64_t>(idx, lengths_.size() + 1);
  for (int32_t length : lengths_) Store<int32_t>(idx, length);
  int64_t offset = 0;
  for (int32_t length : lengths_) {
    Store<int64_t>(idx, offset);
    offset += int64_t{length} * token_bytes_;
  }
  for (size_t i = 0; i <= lengths_.size(); ++i) Store<int64_t>(idx, static_cast<int64_t>(i));
  SHOAL_RETURN_IF_ERROR(files_.Rename(prefix_ + ".bin.tmp", prefix_ + ".bin"));
  return WriteFileAtomically(files_, prefix_ + ".idx", idx);
}

}  // namespace shoal
