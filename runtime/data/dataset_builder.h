// `shoal data build`: text files, folders and JSONL become an indexed dataset, one token per byte.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/file_system.h"
#include "runtime/base/regex.h"

namespace shoal {

struct BuildReport {
  int64_t documents = 0, tokens = 0, empty = 0;  // empty documents are left out
  std::vector<int32_t> lengths;                  // sorted
  std::string Text() const;                      // counts and quantiles of lengths
};

// Inputs in the order given, folders walked in the order of names. A file is one document, unless it is JSONL
// (.jsonl, .jsonl.gz, .jsonl.zst: the string "text" of each line). With `split` a document also begins at every line of
// a text file that it matches. Errors name file and line; then nothing is written.
absl::StatusOr<BuildReport> BuildDataset(FileSystem& files, absl::Span<const std::string> inputs,
                                         const std::string& out_prefix,
                                         const std::optional<Regex>& split = std::nullopt);

}  // namespace shoal
