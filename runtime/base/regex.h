// Regular expressions (Perl syntax, by PCRE2): names of parameters in configuration.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

class Regex {
 public:
  // InvalidArgument says what is wrong with `pattern` and where.
  static absl::StatusOr<Regex> Compile(const std::string& pattern);
  // Whether `text` contains a match. Thread-safe.
  bool Matches(absl::string_view text) const;
  const std::string& pattern() const { return pattern_; }

 private:
  struct Code;
  Regex(std::string pattern, std::shared_ptr<const Code> code) : pattern_(std::move(pattern)), code_(std::move(code)) {}
  std::string pattern_;
  std::shared_ptr<const Code> code_;
};

}  // namespace shoal
