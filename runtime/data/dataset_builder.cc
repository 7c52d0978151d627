#include "runtime/data/dataset_builder.h"

#include <simdjson.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/data/indexed_dataset.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<std::vector<std::string>> ListFiles(absl::Span<const std::string> inputs) {
  std::vector<std::string> paths;
  for (const std::string& input : inputs) {
    std::error_code error;
    if (fs::is_directory(input, error)) {
      std::vector<std::string> found;
      for (auto at = fs::recursive_directory_iterator(input, error); !error && at != fs::recursive_directory_iterator();
           at.increment(error)) {
        if (at->is_regular_file()) found.push_back(at->path().string());
      }
      if (error) return absl::NotFoundError(absl::StrCat(input, ": ", error.message()));
      std::sort(found.begin(), found.end());
      paths.insert(paths.end(), found.begin(), found.end());
    } else if (fs::exists(input, error)) {
      paths.push_back(input);
    } else {
      return absl::NotFoundError(absl::StrCat(input, ": no such file or folder"));
    }
  }
  if (paths.empty()) return absl::NotFoundError("no input files: name files, folders or JSONL files");
  return paths;
}

absl::StatusOr<std::string> Gunzip(const std::string& data) {
  z_stream stream = {};
  if (inflateInit2(&stream, 15 + 32) != Z_OK) return absl::InternalError("zlib");
  std::string out;
  char block[1 << 16];
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  int state = Z_OK;
  while (state == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(block);
    stream.avail_out = sizeof(block);
    state = inflate(&stream, Z_NO_FLUSH);
    out.append(block, sizeof(block) - stream.avail_out);
    if (state == Z_STREAM_END && stream.avail_in > 0) state = inflateReset(&stream);  // members one after the other
  }
  inflateEnd(&stream);
  if (state != Z_STREAM_END) return absl::DataLossError("the gzip stream is damaged or truncated");
  return out;
}

absl::StatusOr<std::string> Unzstd(const std::string& data) {
  ZSTD_DStream* stream = ZSTD_createDStream();
  std::string out, block(ZSTD_DStreamOutSize(), 0);
  ZSTD_inBuffer in = {data.data(), data.size(), 0};
  size_t left = 1;
  while (in.pos < in.size) {
    ZSTD_outBuffer to = {block.data(), block.size(), 0};
    left = ZSTD_decompressStream(stream, &to, &in);
    if (ZSTD_isError(left)) break;
    out.append(block.data(), to.pos);
  }
  ZSTD_freeDStream(stream);
  if (left != 0) return absl::DataLossError("the zstd stream is damaged or truncated");
  return out;
}

absl::Status AddJsonLines(const std::string& text, DatasetWriter& writer, BuildReport& report) {
  simdjson::dom::parser parser;
  int64_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view row(text.data() + at, end - at);
    at = end + 1;
    ++line;
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    simdjson::dom::element document;
    std::string_view value;
    if (const auto error = parser.parse(row.data(), row.size()).get(document)) {
      return absl::DataLossError(absl::StrCat("line ", line, ": ", simdjson::error_message(error)));
    }
    if (document["text"].get(value) != simdjson::SUCCESS)
      return absl::DataLossError(absl::StrCat("line ", line, ": no string \"text\""));
    if (value.empty())
      ++report.empty;
    else
      SHOAL_RETURN_IF_ERROR(writer.AddDocumentBytes(AbslView(value)));
  }
  return absl::OkStatus();
}

absl::Status AddText(const std::string& text, const std::optional<Regex>& split, DatasetWriter& writer,
                     BuildReport& report) {
  if (text.empty()) {
    ++report.empty;
    return absl::OkStatus();
  }
  if (!split.has_value()) return writer.AddDocumentBytes(text);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (at > begin && split->Matches(absl::string_view(text).substr(at, end - at))) {
      SHOAL_RETURN_IF_ERROR(writer.AddDocumentBytes(absl::string_view(text).substr(begin, at - begin)));
      begin = at;
    }
    at = end + 1;
  }
  return writer.AddDocumentBytes(absl::string_view(text).substr(begin));
}

absl::Status AddFile(FileSystem& files, const std::string& path, const std::optional<Regex>& split,
                     DatasetWriter& writer, BuildReport& report) {
  SHOAL_ASSIGN_OR_RETURN(std::string text, files.Read(path));
  std::string name = path;
  if (absl::EndsWith(name, ".jsonl.gz")) {
    SHOAL_ASSIGN_OR_RETURN(text, Gunzip(text));
    name.resize(name.size() - 3);
  } else if (absl::EndsWith(name, ".jsonl.zst")) {
    SHOAL_ASSIGN_OR_RETURN(text, Unzstd(text));
    name.resize(name.size() - 4);
  }
  if (absl::EndsWith(name, ".jsonl")) return AddJsonLines(text, writer, report);
  return AddText(text, split, writer, report);
}

}  // namespace

absl::StatusOr<BuildReport> BuildDataset(FileSystem& files, absl::Span<const std::string> inputs,
                                         const std::string& out_prefix, const std::optional<Regex>& split) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListFiles(inputs));
  const std::string folder = fs::path(out_prefix).parent_path().string();
  if (!folder.empty()) SHOAL_RETURN_IF_ERROR(files.MakeDirs(folder));
  SHOAL_ASSIGN_OR_RETURN(auto writer, DatasetWriter::Create(files, out_prefix, 256));
  BuildReport report;
  absl::Status added;
  for (const std::string& path : paths) {
    added = Annotate(AddFile(files, path, split, *writer, report), path);
    if (!added.ok()) break;
  }
  if (added.ok() && writer->documents() == 0)
    added = absl::DataLossError("all inputs are empty: there is nothing to train on");
  if (added.ok()) added = writer->Finish();
  if (!added.ok()) {
    writer.reset();
    files.RemoveAll(out_prefix + ".bin.tmp").IgnoreError();
    return added;
  }
  report.documents = writer->documents();
  report.tokens = writer->tokens();
  report.lengths = writer->lengths();
  std::sort(report.lengths.begin(), report.lengths.end());
  return report;
}

std::string BuildReport::Text() const {
  std::string text = absl::StrCat(documents, " documents, ", tokens, " tokens (bytes)");
  if (empty > 0) absl::StrAppend(&text, ", ", empty, " empty ones left out");
  absl::StrAppend(&text, "\nlengths:");
  for (const auto& [name, share] :
       {std::pair{"shortest", 0.0}, {"10 %", 0.1}, {"median", 0.5}, {"90 %", 0.9}, {"99 %", 0.99}, {"longest", 1.0}}) {
    const size_t at = static_cast<size_t>(share * static_cast<double>(lengths.size() - 1));
    absl::StrAppend(&text, " ", name, " ", lengths[at]);
  }
  return text;
}

}  // namespace shoal
