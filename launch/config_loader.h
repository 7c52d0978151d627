// Reads a job file (protobuf text format) and --set overrides. All errors at once, each with its place; the stock
// parser stops at the first.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "launch/job.pb.h"

namespace shoal {

// Collects errors of configuration: "job.textproto:12:5: ...".
class ConfigErrors {
 public:
  void Add(const std::string& place, const std::string& message) {
    errors_.push_back(place.empty() ? message : place + ": " + message);
  }
  bool empty() const { return errors_.empty(); }
  // OK, or InvalidArgument with all of them, one per line.
  absl::Status Result() const;

 private:
  std::vector<std::string> errors_;
};

// Where each field was set: "optim.adamw.beta1" -> "job.textproto:12:5" or "--set #2". Of repeated fields the last, and
// each by its number, from 0: "data.dataset[1].path".
using FieldPlaces = std::map<std::string, std::string>;

// Where `field` was set, or else `file`.
std::string PlaceOf(const std::string& field, const std::string& file, const FieldPlaces& places);

// Merges `text` into `message`. `file` names it in errors.
void ParseTextConfig(const std::string& text, const std::string& file, google::protobuf::Message& message,
                     ConfigErrors& errors, FieldPlaces& places);
// Applies "path.to.field=value". Repeated fields are replaced as a whole by `path=[...]` or `path { ... }`; `place`
// names it.
void ApplySet(const std::string& assignment, const std::string& place, google::protobuf::Message& message,
              ConfigErrors& errors, FieldPlaces& places);

// What is wrong with the name of a field, "path.to.field" below `group`; "" when there is one.
std::string PathProblem(const google::protobuf::Descriptor& group, const std::string& path);

struct LoadedJob {
  config::Job job;
  FieldPlaces places;
};
// Reads `path` and applies `sets`. NotFound (a missing file) is a configuration error too.
absl::StatusOr<LoadedJob> LoadJob(const std::string& path, absl::Span<const std::string> sets);

// Deterministic text of a resolved job.
std::string JobText(const config::Job& job);
// "field: old -> new" of every field that differs and affects results (logging, checkpoints, debugging and prefetching
// do not), except those named in `accepted` or below a group that is. Another optimizer is "optim.kind: old -> new";
// only that name accepts it.
std::vector<std::string> ResultChanges(const config::Job& before, const config::Job& now,
                                       absl::Span<const std::string> accepted);

}  // namespace shoal
