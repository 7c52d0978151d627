#include "launch/config_loader.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "optim/optimizer.h"
#include "runtime/base/file_system.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

namespace pb = google::protobuf;
using pb::Descriptor;
using pb::FieldDescriptor;
using pb::Message;
using pb::io::Tokenizer;

std::vector<std::string> FieldNames(const Descriptor& d) {
  std::vector<std::string> names;
  for (int i = 0; i < d.field_count(); ++i) names.push_back(d.field(i)->name());
  return names;
}

std::string Suggest(const std::string& word, const std::vector<std::string>& all) {
  const std::string near = DidYouMean(word, all);
  return near.empty() ? absl::StrCat("; it takes: ", absl::StrJoin(all, ", "))
                      : absl::StrCat("; did you mean '", near, "'?");
}

const char* TypeName(const FieldDescriptor& f) {
  switch (f.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_STRING:
      return "a string in quotes";
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "a number";
    case FieldDescriptor::CPPTYPE_ENUM:
      return "a name";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "a group { ... }";
    default:
      return "a whole number";
  }
}

class Parser : public pb::io::ErrorCollector {
 public:
  Parser(const std::string& text, std::string file, ConfigErrors& errors, FieldPlaces& places)
      : stream_(text.data(), static_cast<int>(text.size())),
        tokens_(&stream_, this),
        file_(std::move(file)),
        errors_(errors),
        places_(&places) {
    tokens_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokens_.set_allow_f_after_float(true);
    tokens_.Next();
  }

  // A place given by the caller (--set) instead of line and column.
  void set_fixed_place(std::string place) { fixed_ = std::move(place); }

  void AddError(int line, pb::io::ColumnNumber column, const std::string& message) override {
    errors_.Add(PlaceAt(line, column), message);
  }
  void AddWarning(int, pb::io::ColumnNumber, const std::string&) override {}

  void Fields(Message& message, const std::string& path, const std::string& end) {
    std::set<const FieldDescriptor*> seen;
    while (tokens_.current().type != Tokenizer::TYPE_END && tokens_.current().text != end) {
      if (tokens_.current().text == ";" || tokens_.current().text == ",") {
        tokens_.Next();
        continue;
      }
      if (tokens_.current().type != Tokenizer::TYPE_IDENTIFIER) {
        Error(absl::StrCat("'", tokens_.current().text, "' where the name of a field should stand"));
        tokens_.Next();
        continue;
      }
      OneField(message, path, seen);
    }
    if (end.empty()) return;
    if (tokens_.current().text == end)
      tokens_.Next();
    else
      Error(absl::StrCat("the group ", path, " is not closed: '", end, "' is missing"));
  }

  // The value of `field`, already named: what stands after ':' or '{'.
  void Value(Message& message, const FieldDescriptor& field, const std::string& path) {
    const bool colon = tokens_.current().text == ":";
    if (colon) tokens_.Next();
    const auto& text = tokens_.current().text;
    if (field.is_repeated() && text == "[") {
      tokens_.Next();
      for (;;) {
        const std::string& at = tokens_.current().text;
        if (tokens_.current().type == Tokenizer::TYPE_END || at == "}" || at == ">")
          return Error(absl::StrCat("the list ", path, " is not closed: ']' is missing"));
        if (at == "]") break;
        One(message, field, path, true);
        if (tokens_.current().text == ",") tokens_.Next();
      }
      tokens_.Next();
      return;
    }
    One(message, field, path, colon);
  }

  bool at_end() { return tokens_.current().type == Tokenizer::TYPE_END; }
  void Next() { tokens_.Next(); }
  const std::string& text() { return tokens_.current().text; }
  void Error(const std::string& message) { errors_.Add(Place(), message); }

 private:
  std::string PlaceAt(int line, int column) const {
    return !fixed_.empty() ? fixed_ : absl::StrCat(file_, ":", line + 1, ":", column + 1);
  }
  std::string Place() { return PlaceAt(tokens_.current().line, tokens_.current().column); }

  void OneField(Message& message, const std::string& path, std::set<const FieldDescriptor*>& seen) {
    const std::string name = tokens_.current().text, here = Place();
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    const std::string full = path.empty() ? name : absl::StrCat(path, ".", name);
    tokens_.Next();
    if (field == nullptr) {
      errors_.Add(here,
                  absl::StrCat("unknown field '", full, "'", Suggest(name, FieldNames(*message.GetDescriptor()))));
      Skip();
      return;
    }
    if (!field->is_repeated() && !seen.insert(field).second) {
      errors_.Add(here, absl::StrCat("'", full, "' is set twice, first at ", (*places_)[full]));
      Skip();
      return;
    }
    if (const auto* oneof = field->real_containing_oneof(); oneof != nullptr) {
      const FieldDescriptor* other = message.GetReflection()->GetOneofFieldDescriptor(message, oneof);
      if (other != nullptr && other != field && seen.count(other) > 0) {
        const std::string first = path.empty() ? other->name() : absl::StrCat(path, ".", other->name());
        errors_.Add(here, absl::StrCat("'", full, "' and '", first, "' (", (*places_)[first],
                                       ") exclude each other; keep one"));
        Skip();
        return;
      }
    }
    (*places_)[full] = here;
    Value(message, *field, full);
  }

  void One(Message& message, const FieldDescriptor& field, const std::string& path, bool colon) {
    const auto* reflection = message.GetReflection();
    const std::string text = tokens_.current().text;
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (text != "{" && text != "<") {
        Error(absl::StrCat("'", path, "' is a group; write ", field.name(),
                           " { ... } with: ", absl::StrJoin(FieldNames(*field.message_type()), ", ")));
        Skip();
        return;
      }
      const std::string here = Place(), end = text == "{" ? "}" : ">";
      tokens_.Next();
      const int index = field.is_repeated() ? reflection->FieldSize(message, &field) : 0;
      if (field.is_repeated())
        Element(*reflection->AddMessage(&message, &field), path, index, here, end);
      else
        Fields(*reflection->MutableMessage(&message, &field), path, end);
      return;
    }
    if (!colon) {
      Error(absl::StrCat("':' is missing after '", path, "'"));
      if (text == "{" || text == "<") {
        Skip();
        return;
      }
    }
    if (field.is_repeated()) (*places_)[Indexed(path, reflection->FieldSize(message, &field))] = Place();
    Scalar(message, field, path);
  }

  static std::string Indexed(const std::string& path, int index) { return absl::StrCat(path, "[", index, "]"); }

  // One group of a repeated field. Its places are found both as "axis[1].value" and, those of the last, as
  // "axis.value".
  void Element(Message& message, const std::string& path, int index, const std::string& here, const std::string& end) {
    FieldPlaces* const outer = places_;
    FieldPlaces inner;
    places_ = &inner;
    Fields(message, path, end);
    places_ = outer;
    (*outer)[Indexed(path, index)] = here;
    for (const auto& [name, place] : inner) {
      (*outer)[name] = place;
      (*outer)[Indexed(path, index) + name.substr(path.size())] = place;
    }
  }

  void Scalar(Message& message, const FieldDescriptor& field, const std::string& path) {
    const auto* reflection = message.GetReflection();
    const auto place = Place();
    bool negative = false;
    if (tokens_.current().text == "-") {
      negative = true;
      tokens_.Next();
    }
    const Tokenizer::Token token = tokens_.current();
    const auto wrong = [&] {
      errors_.Add(place,
                  absl::StrCat("'", path, "' is ", negative ? "-" : "", token.text, "; it takes ", TypeName(field)));
    };
    if (token.type == Tokenizer::TYPE_END || token.text == "}" || token.text == ">") {
      errors_.Add(place, absl::StrCat("'", path, "' has no value; it takes ", TypeName(field)));
      return;
    }
    if (token.text == "{" || token.text == "<") {
      errors_.Add(place, absl::StrCat("'", path, "' is no group; it takes ", TypeName(field)));
      Skip();
      return;
    }
    tokens_.Next();
    const bool repeated = field.is_repeated();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL: {
        if (negative || (token.text != "true" && token.text != "false")) return wrong();
        repeated ? reflection->AddBool(&message, &field, token.text == "true")
                 : reflection->SetBool(&message, &field, token.text == "true");
        return;
      }
      case FieldDescriptor::CPPTYPE_STRING: {
        if (token.type != Tokenizer::TYPE_STRING) return wrong();
        std::string value;
        Tokenizer::ParseString(token.text, &value);
        while (tokens_.current().type == Tokenizer::TYPE_STRING) {
          Tokenizer::ParseStringAppend(tokens_.current().text, &value);
          tokens_.Next();
        }
        repeated ? reflection->AddString(&message, &field, value) : reflection->SetString(&message, &field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_ENUM: {
        const std::string name = absl::AsciiStrToUpper(token.text);
        const auto* value = field.enum_type()->FindValueByName(name);
        if (value == nullptr || negative) {
          std::vector<std::string> names;
          for (int i = 0; i < field.enum_type()->value_count(); ++i)
            names.push_back(field.enum_type()->value(i)->name());
          errors_.Add(place, absl::StrCat("'", path, "' is ", token.text, Suggest(name, names)));
          return;
        }
        repeated ? reflection->AddEnum(&message, &field, value) : reflection->SetEnum(&message, &field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0;
        if ((token.type != Tokenizer::TYPE_FLOAT && token.type != Tokenizer::TYPE_INTEGER) ||
            !absl::SimpleAtod(token.text, &value) || !std::isfinite(value))
          return wrong();
        value = negative ? -value : value;
        repeated ? reflection->AddDouble(&message, &field, value) : reflection->SetDouble(&message, &field, value);
        return;
      }
      default:
        break;
    }
    uint64_t magnitude = 0;
    uint64_t most = std::numeric_limits<int64_t>::max();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT32) most = std::numeric_limits<int32_t>::max();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64) most = std::numeric_limits<uint64_t>::max();
    if (token.type != Tokenizer::TYPE_INTEGER ||
        !Tokenizer::ParseInteger(token.text, std::numeric_limits<uint64_t>::max(), &magnitude))
      return wrong();
    if (magnitude > most || (negative && field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64)) {
      errors_.Add(place, absl::StrCat("'", path, "' is ", negative ? "-" : "", token.text,
                                      "; the nearest value that fits is ", negative ? 0 : most));
      return;
    }
    const auto value = negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        repeated ? reflection->AddInt32(&message, &field, static_cast<int32_t>(value))
                 : reflection->SetInt32(&message, &field, static_cast<int32_t>(value));
        return;
      case FieldDescriptor::CPPTYPE_UINT64:
        repeated ? reflection->AddUInt64(&message, &field, magnitude)
                 : reflection->SetUInt64(&message, &field, magnitude);
        return;
      default:
        repeated ? reflection->AddInt64(&message, &field, value) : reflection->SetInt64(&message, &field, value);
    }
  }

  // Passes over a value that nobody can take: a scalar, or a group with all that is in it.
  void Skip() {
    if (tokens_.current().text == ":") tokens_.Next();
    if (tokens_.current().text == "-") tokens_.Next();
    const std::string open = tokens_.current().text;
    if (open != "{" && open != "<" && open != "[") {
      if (open != "}" && open != ">") tokens_.Next();
      return;
    }
    int depth = 0;
    do {
      const std::string& t = tokens_.current().text;
      if (t == "{" || t == "<" || t == "[") ++depth;
      if (t == "}" || t == ">" || t == "]") --depth;
    } while (tokens_.Next() && depth > 0);
  }

  pb::io::ArrayInputStream stream_;
  Tokenizer tokens_;
  std::string file_, fixed_;
  ConfigErrors& errors_;
  FieldPlaces* places_;
};

}  // namespace

absl::Status ConfigErrors::Result() const {
  return errors_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(errors_, "\n"));
}

std::string PlaceOf(const std::string& field, const std::string& file, const FieldPlaces& places) {
  const auto at = places.find(field);
  return at == places.end() ? file : at->second;
}

void ParseTextConfig(const std::string& text, const std::string& file, Message& message, ConfigErrors& errors,
                     FieldPlaces& places) {
  Parser parser(text, file, errors, places);
  parser.Fields(message, "", "");
}

std::string PathProblem(const Descriptor& group, const std::string& path) {
  const Descriptor* at = &group;
  const std::vector<std::string> names = absl::StrSplit(path, '.');
  for (size_t i = 0; i < names.size(); ++i) {
    const FieldDescriptor* field = at->FindFieldByName(names[i]);
    if (field == nullptr)
      return absl::StrCat("unknown field '", path, "': no '", names[i], "'", Suggest(names[i], FieldNames(*at)));
    if (i + 1 == names.size()) break;
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated())
      return absl::StrCat("'", path, "': '", names[i], "' is no group with fields");
    at = field->message_type();
  }
  return "";
}

void ApplySet(const std::string& assignment, const std::string& place, Message& message, ConfigErrors& errors,
              FieldPlaces& places) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos) {
    errors.Add(place, absl::StrCat("'", assignment, "' is no assignment; write --set path.to.field=value"));
    return;
  }
  const std::string path = assignment.substr(0, equals);
  std::string value = assignment.substr(equals + 1);
  if (const std::string problem = PathProblem(*message.GetDescriptor(), path); !problem.empty())
    return errors.Add(place, problem);
  Message* at = &message;
  const FieldDescriptor* field = nullptr;
  for (const auto& name : absl::StrSplit(path, '.')) {
    if (field != nullptr) at = at->GetReflection()->MutableMessage(at, field);
    field = at->GetDescriptor()->FindFieldByName(std::string(name));
  }
  if (field->is_repeated() || field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
    at->GetReflection()->ClearField(at, field);
  // Quotes are the shell's already: a bare word is a string where a string is wanted.
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING && !absl::StartsWith(value, "\"") &&
      !absl::StartsWith(value, "'") && !absl::StartsWith(value, "[")) {
    std::string quoted = "\"";
    for (char c : value) {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c;
    }
    value = quoted + "\"";
  }
  places[path] = place;
  Parser parser(value, place, errors, places);
  parser.set_fixed_place(place);
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE || absl::StartsWith(value, "[")) {
    parser.Value(*at, *field, path);
  } else {
    const std::string with_colon = ":" + value;
    Parser scalar(with_colon, place, errors, places);
    scalar.set_fixed_place(place);
    scalar.Value(*at, *field, path);
    if (!scalar.at_end())
      scalar.Error(absl::StrCat("'", path, "': '", scalar.text(), "' is left over after the value"));
  }
}

absl::StatusOr<LoadedJob> LoadJob(const std::string& path, absl::Span<const std::string> sets) {
  auto text = PosixFiles().Read(path);
  if (!text.ok()) return absl::InvalidArgumentError(absl::StrCat("job file ", text.status().message()));
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(*text, path, loaded.job, errors, loaded.places);
  for (size_t i = 0; i < sets.size(); ++i)
    ApplySet(sets[i], absl::StrCat("--set ", sets[i]), loaded.job, errors, loaded.places);
  if (absl::Status status = errors.Result(); !status.ok()) return status;
  return loaded;
}

std::string JobText(const config::Job& job) {
  std::string text;
  pb::TextFormat::Printer printer;
  printer.PrintToString(job, &text);
  return text;
}

namespace {

void Flatten(const Message& message, const std::string& path, std::map<std::string, std::string>& to) {
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string name = path.empty() ? field->name() : absl::StrCat(path, ".", field->name());
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field->is_repeated()) {
      Flatten(reflection->GetMessage(message, field), name, to);
      continue;
    }
    std::string value;
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string one;
      pb::TextFormat::PrintFieldValueToString(message, field, field->is_repeated() ? i : -1, &one);
      absl::StrAppend(&value, i > 0 ? ", " : "", one);
    }
    to[name] = value;
  }
}

bool AffectsResults(const std::string& field) {
  // Gradients' codes do, but for what a resumed run does with what earlier ones left behind.
  if (absl::StartsWith(field, "comm."))
    return field == "comm.fake" || (absl::StartsWith(field, "comm.compression.") && field != "comm.compression.resume");
  for (const char* prefix : {"name", "log.", "checkpoint.", "debug.wait_for_debugger", "debug.check_numerics",
                             "debug.grad_check", "sample.", "eval.", "data.prefetch_steps", "data.images.prefetch_",
                             "runtime.threads_per_rank", "runtime.activation_gib", "runtime.calibration"}) {
    if (absl::StartsWith(field, prefix)) return false;
  }
  return true;
}

bool Accepts(absl::Span<const std::string> accepted, const std::string& field) {
  return std::any_of(accepted.begin(), accepted.end(),
                     [&](const std::string& name) { return field == name || absl::StartsWith(field, name + "."); });
}

}  // namespace

std::vector<std::string> ResultChanges(const config::Job& before, const config::Job& now,
                                       absl::Span<const std::string> accepted) {
  std::map<std::string, std::string> a, b;
  Flatten(before, "", a);
  Flatten(now, "", b);
  std::set<std::string> names;
  for (const auto& [name, value] : a) names.insert(name);
  for (const auto& [name, value] : b) names.insert(name);
  std::vector<std::string> changes;
  const std::string then = OptimizerName(before.optim()), kind = OptimizerName(now.optim());
  if (then != kind && std::find(accepted.begin(), accepted.end(), "optim.kind") == accepted.end()) {
    changes.push_back(
        absl::StrCat("optim.kind: ", then, " -> ", kind, ", whose moments only --reset_optimizer starts anew"));
  }
  for (const std::string& name : names) {
    const std::string old = a.count(name) > 0 ? a[name] : "unset", fresh = b.count(name) > 0 ? b[name] : "unset";
    if (old == fresh || !AffectsResults(name) || Accepts(accepted, name)) continue;
    changes.push_back(absl::StrCat(name, ": ", old, " -> ", fresh));
  }
  return changes;
}

}  // namespace shoal
