// Token datasets on disk: Megatron-LM's indexed format (.bin + .idx), the native one, and llm.c's .bin shards.
//
// .idx (little endian): "MMIDIDX\0\0", u64 version 1, u8 dtype code, u64 sequences, u64 documents + 1, i32 length of
// each sequence, i64 byte offset of each, i64 document borders. .bin: the tokens. llm.c shard: 256 i32 (magic 20240520,
// version 1, token count), then u16 tokens; documents begin with the end-of-text token 50256.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/file_system.h"

namespace shoal {

// A file mapped for reading.
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  MappedFile(const char* data, int64_t size) : data_(data), size_(size) {}
  const char* data_;
  int64_t size_;
};

// Read only; opening writes nothing. Thread-safe.
class TokenDataset {
 public:
  // `path` is the common prefix of a .bin/.idx pair, either of the two files, or one llm.c shard. Everything that can
  // be known without reading all tokens is checked; DataLoss and NotFound errors name the file and both values.
  static absl::StatusOr<std::unique_ptr<TokenDataset>> Open(const std::string& path);

  int64_t documents() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t length(int64_t document) const { return starts_[document + 1] - starts_[document]; }
  int64_t tokens() const { return starts_.back(); }
  // Tokens [begin, begin + out.size()) of a document.
  void Read(int64_t document, int64_t begin, absl::Span<int32_t> out) const;
  // DataLoss naming the first document that holds a token outside [0, vocabulary). Reads everything.
  absl::Status CheckTokens(int64_t vocabulary) const;
  const std::string& path() const { return path_; }

 private:
  absl::Status OpenIndexed(const std::string& prefix);
  absl::Status OpenLlmc(const std::string& path);
  int32_t TokenAt(int64_t position) const;
  std::string path_;
  std::shared_ptr<MappedFile> bin_;
  const char* base_ = nullptr;
  int token_bytes_ = 1;
  bool token_signed_ = false;
  std::vector<int64_t> starts_;  // first token of each document, and the end
};

// What the reader checks of an .idx, on bytes: for the reader and its fuzzer.
struct ParsedIndex {
  int token_bytes = 1;
  bool token_signed = false;
  std::vector<int64_t> starts;  // token position of each document's start, and the end
};
absl::StatusOr<ParsedIndex> ParseIndex(absl::Span<const char> bytes, int64_t bin_bytes);

// Writes PREFIX.bin and PREFIX.idx; nothing appears under these names before Finish.
class DatasetWriter {
 public:
  // Tokens are stored in one byte when vocabulary <= 256, in two when <= 65536, else in four.
  static absl::StatusOr<std::unique_ptr<DatasetWriter>> Create(FileSystem& files, const std::string& prefix,
                                                               int64_t vocabulary);
  absl::Status AddDocument(absl::Span<const int32_t> tokens);
  absl::Status AddDocumentBytes(absl::string_view bytes);  // the byte tokenizer: one token per byte
  absl::Status Finish();
  int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t tokens() const { return tokens_; }
  const std::vector<int32_t>& lengths() const { return lengths_; }

 private:
  DatasetWriter(FileSystem& files, std::string prefix, int token_bytes)
      : files_(files), prefix_(std::move(prefix)), token_bytes_(token_bytes) {}
  FileSystem& files_;
  std::string prefix_;
  int token_bytes_;
  std::unique_ptr<WritableFile> bin_;
  std::string buffer_;
  std::vector<int32_t> lengths_;
  int64_t tokens_ = 0;
};

}  // namespace shoal
