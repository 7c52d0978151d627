#include "launch/experiment/axes.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/experiment/results.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

std::string NameOf(const config::Axis& axis) {
  return axis.has_name() ? axis.name() : axis.field().substr(axis.field().rfind('.') + 1);
}

// The values or points of one axis.
AxisSteps StepsOf(const config::Axis& axis, const std::string& field, const std::string& file,
                  const FieldPlaces& places, ConfigErrors& errors) {
  AxisSteps result;
  result.place = PlaceOf(field, file, places);
  result.name = NameOf(axis);
  result.field = axis.field();
  result.field_place = PlaceOf(field + ".field", file, places);
  const std::string what = absl::StrCat("axis '", result.name, "'");
  if (axis.has_field() == (axis.point_size() > 0) || axis.has_field() != (axis.value_size() > 0)) {
    errors.Add(result.place, absl::StrCat(what,
                                          " takes either a field with values, axis { field: "
                                          "\"optim.learning_rate\" value: [\"1e-3\", \"2e-3\"] }, or points, axis "
                                          "{ name: \"optimizer\" point { label: \"a\" set: \"...\" } }"));
    return result;
  }
  for (int v = 0; v < axis.value_size(); ++v) {
    result.labels.push_back(axis.value(v));
    result.steps.push_back({{absl::StrCat(axis.field(), "=", axis.value(v)),
                             PlaceOf(absl::StrCat(field, ".value[", v, "]"), file, places)}});
  }
  for (int p = 0; p < axis.point_size(); ++p) {
    const std::string at = absl::StrCat(field, ".point[", p, "]");
    if (axis.point(p).label().empty())
      errors.Add(PlaceOf(at, file, places), absl::StrCat("a point of ", what, " has no label"));
    result.labels.push_back(axis.point(p).label());
    result.steps.emplace_back();
    for (int s = 0; s < axis.point(p).set_size(); ++s) {
      result.steps.back().push_back({axis.point(p).set(s), PlaceOf(absl::StrCat(at, ".set[", s, "]"), file, places)});
    }
  }
  CheckUnique(field + (axis.has_field() ? ".value" : ".point"), what, result.labels, file, places, errors);
  return result;
}

}  // namespace

void AddPoint(const std::string& text, const std::string& place, config::Experiment& experiment, ConfigErrors& errors,
              FieldPlaces& places) {
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon), step = colon == std::string::npos ? "" : text.substr(colon + 1);
  std::vector<std::string> names;
  for (int a = 0; a < experiment.axis_size(); ++a) {
    config::Axis& axis = *experiment.mutable_axis(a);
    names.push_back(NameOf(axis));
    if (names.back() != name) continue;
    const size_t equals = step.find('=');
    if (axis.has_field()) {
      if (step.empty()) return errors.Add(place, absl::StrCat("it takes a value: ", name, ":VALUE"));
      places[absl::StrCat("axis[", a, "].value[", axis.value_size(), "]")] = place;
      axis.add_value(step);
      return;
    }
    if (equals == 0 || equals == std::string::npos)
      return errors.Add(place, absl::StrCat("it takes a label and what it sets: ", name, ":LABEL=FIELD=VALUE"));
    const std::string point = absl::StrCat("axis[", a, "].point[", axis.point_size(), "]");
    places[point] = places[point + ".set[0]"] = place;
    config::AxisPoint& added = *axis.add_point();
    added.set_label(step.substr(0, equals));
    added.add_set(step.substr(equals + 1));
    return;
  }
  errors.Add(place, NoSuchAxis(name, names));
}

std::string NoSuchAxis(const std::string& name, const std::vector<std::string>& names) {
  const std::string near = DidYouMean(name, names);
  return absl::StrCat("'", name, "' is no axis",
                      near.empty() ? absl::StrCat("; there are: ", absl::StrJoin(names, ", "))
                                   : absl::StrCat("; did you mean '", near, "'?"));
}

std::vector<AxisSteps> ReadAxes(const config::Experiment& experiment, const std::string& file,
                                const FieldPlaces& places, ConfigErrors& errors) {
  const auto reserved = ReservedColumns();
  std::vector<AxisSteps> axes;
  for (int i = 0; i < experiment.axis_size(); ++i) {
    AxisSteps axis = StepsOf(experiment.axis(i), absl::StrCat("axis[", i, "]"), file, places, errors);
    if (axis.name.empty()) errors.Add(axis.place, "an axis of points needs a name");
    if (std::count(reserved.begin(), reserved.end(), axis.name) > 0) {
      errors.Add(axis.place,
                 absl::StrCat("'", axis.name, "' is a column of results.csv already",
                              axis.name == "seed" ? "; seeds: [1, 2] sets seeds" : "", "; give the axis another name"));
    }
    for (const AxisSteps& other : axes) {
      if (other.name == axis.name)
        errors.Add(axis.place, absl::StrCat("two axes are called '", axis.name, "'; give one a name"));
    }
    axes.push_back(std::move(axis));
  }
  return axes;
}

void CheckUnique(const std::string& field, const std::string& what, const std::vector<std::string>& labels,
                 const std::string& file, const FieldPlaces& places, ConfigErrors& errors) {
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto here = labels.begin() + static_cast<int64_t>(i);
    if (std::find(labels.begin(), here, *here) != here)
      errors.Add(PlaceOf(absl::StrCat(field, "[", i, "]"), file, places), absl::StrCat(what, " has ", *here, " twice"));
  }
}

// Whether setting `later` loses what was set at `earlier`: the same field, or a group around it.
bool Covers(const std::string& later, const std::string& earlier) {
  return later == earlier || absl::StartsWith(earlier, later + ".");
}

// Whether the field at `path` is still set; a member of a oneof is not once another was chosen.
bool IsSet(const google::protobuf::Message& message, const std::string& path) {
  const google::protobuf::Message* at = &message;
  for (const auto& name : absl::StrSplit(path, '.')) {
    const auto* field = at->GetDescriptor()->FindFieldByName(std::string(name));
    if (field == nullptr) return false;
    if (field->is_repeated()) return true;
    if (!at->GetReflection()->HasField(*at, field)) return false;
    if (field->message_type() == nullptr) return true;
    at = &at->GetReflection()->GetMessage(*at, field);
  }
  return true;
}

}  // namespace shoal
