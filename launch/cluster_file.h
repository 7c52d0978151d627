// Reads a cluster file (parallel/cluster.proto, protobuf text format) and --set overrides.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/cluster.pb.h"

namespace shoal {

// InvalidArgument has all errors at once, each with its place: what the text has wrong, or else what CheckCluster finds
// (of a field that is missing the place is the group's). A missing file is a configuration error too. `lengths.path`
// becomes one from here, not from the file's folder.
absl::StatusOr<config::Cluster> LoadCluster(const std::string& path, absl::Span<const std::string> sets);

}  // namespace shoal
