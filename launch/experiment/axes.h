// The axes of an experiment as assignments to a job's fields.
#pragma once

#include <string>
#include <vector>

#include "google/protobuf/message.h"
#include "launch/config_loader.h"
#include "launch/experiment/experiment.pb.h"

namespace shoal {

// "field=value" and where it stands.
struct Assignment {
  std::string text, place;
  std::string path() const { return text.substr(0, text.find('=')); }
};

struct AxisSteps {
  std::string name, place;
  std::string field, field_place;              // of an axis of values; empty: of points
  std::vector<std::string> labels;             // one per step along the axis
  std::vector<std::vector<Assignment>> steps;  // in order; later ones win within a step
};

// Adds a step behind the others of an axis: "codes:q3=comm.compression.codec=q3", a label and what it sets, to an axis
// of points; "learning_rate:4e-3" to one of values. Its place is `place`. Adds an error where there is no such axis.
void AddPoint(const std::string& text, const std::string& place, config::Experiment& experiment, ConfigErrors& errors,
              FieldPlaces& places);

// All axes; `places` are those of the experiment's fields, `file` stands for what has none. Adds an error for axes
// without name or steps, with a step twice, with the name of another one or of a column of results.csv.
std::vector<AxisSteps> ReadAxes(const config::Experiment& experiment, const std::string& file,
                                const FieldPlaces& places, ConfigErrors& errors);

// Says that `name` is none of the axes `names`.
std::string NoSuchAxis(const std::string& name, const std::vector<std::string>& names);

// Adds an error for every label of the repeated field `field` that was there before.
void CheckUnique(const std::string& field, const std::string& what, const std::vector<std::string>& labels,
                 const std::string& file, const FieldPlaces& places, ConfigErrors& errors);

// Whether setting `later` loses what was set at `earlier`: the same field, or a group around it.
bool Covers(const std::string& later, const std::string& earlier);
// Whether the field at `path` is set; a member of a oneof is not once another was chosen.
bool IsSet(const google::protobuf::Message& message, const std::string& path);

}  // namespace shoal
