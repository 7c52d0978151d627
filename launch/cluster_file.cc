#include "launch/cluster_file.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launch/config_loader.h"
#include "parallel/cluster.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

// Of the field, or of the nearest group around it that was set.
std::string NearestPlace(std::string field, const std::string& file, const FieldPlaces& places) {
  while (places.count(field) == 0) {
    const size_t dot = field.rfind('.');
    if (dot == std::string::npos) return file;
    field.resize(dot);
  }
  return PlaceOf(field, file, places);
}

}  // namespace

absl::StatusOr<config::Cluster> LoadCluster(const std::string& path, absl::Span<const std::string> sets) {
  auto text = PosixFiles().Read(path);
  if (!text.ok()) return absl::InvalidArgumentError(absl::StrCat("cluster file ", text.status().message()));
  config::Cluster cluster;
  ConfigErrors errors;
  FieldPlaces places;
  ParseTextConfig(*text, path, cluster, errors, places);
  const std::string lengths = cluster.lengths().path();
  const size_t slash = path.rfind('/');
  if (!lengths.empty() && !absl::StartsWith(lengths, "/") && slash != std::string::npos)
    cluster.mutable_lengths()->set_path(absl::StrCat(path.substr(0, slash + 1), lengths));
  for (const std::string& set : sets) ApplySet(set, absl::StrCat("--set ", set), cluster, errors, places);
  SHOAL_RETURN_IF_ERROR(errors.Result());
  CheckCluster(cluster, [&](const std::string& field, const std::string& problem) {
    errors.Add(NearestPlace(field, path, places), absl::StrCat(field, " ", problem));
  });
  SHOAL_RETURN_IF_ERROR(errors.Result());
  return cluster;
}

}  // namespace shoal
