#include "runtime/base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace shoal {

struct Regex::Code {
  explicit Code(pcre2_code* compiled) : code(compiled) {}
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
  pcre2_code* const code;
};

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), 0, &error, &at, nullptr);
  if (code != nullptr) return Regex(pattern, std::make_shared<const Code>(code));
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return absl::InvalidArgumentError(absl::StrCat(
      "'", pattern, "' is no regular expression: ", reinterpret_cast<const char*>(text), " at character ", at));
}

bool Regex::Matches(absl::string_view text) const {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  const int found =
      pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match, nullptr);
  pcre2_match_data_free(match);
  return found >= 0;
}

}  // namespace shoal
