#include "parallel/checkpoint/checkpoint_reader.h"

#include <xxhash.h>

#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "parallel/box.h"
#include "parallel/checkpoint/safetensors.h"
#include "parallel/state.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<std::string> FindCheckpoint(const std::string& path) {
  FileSystem& files = PosixFiles();
  if (files.Exists(path + "/manifest.json")) return path;
  for (const char* name : {"best", "latest"}) {
    for (const std::string& folder : {path + "/checkpoints", path}) {
      auto text = files.Read(folder + "/" + name);
      if (text.ok()) return folder + "/" + std::string(absl::StripSuffix(*text, "\n"));
    }
  }
  return absl::NotFoundError(
      absl::StrCat(path, ": no checkpoint here; name a run directory or a step-NNNNNNNN folder in its checkpoints/"));
}

absl::StatusOr<CheckpointReader> CheckpointReader::Open(const std::string& folder) {
  CheckpointReader reader;
  reader.folder_ = folder;
  auto text = PosixFiles().Read(folder + "/manifest.json");
  if (!text.ok()) return absl::DataLossError(std::string(text.status().message()));
  auto manifest = ParseManifest(*text);
  if (!manifest.ok()) return Annotate(manifest.status(), folder + "/manifest.json");
  reader.manifest_ = *std::move(manifest);
  return reader;
}

absl::StatusOr<Tensor> CheckpointReader::Read(const std::string& name) const {
  const auto at = manifest_.tensors.find(name);
  if (at == manifest_.tensors.end())
    return absl::DataLossError(absl::StrCat(folder_, ": tensor '", name, "' is not in it"));
  const int64_t size = NumElements(at->second.shape);
  const Tensor out = Tensor::Zeros({size}, DType::kF32);
  for (const ManifestPiece& piece : at->second.pieces) {
    SHOAL_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(folder_ + "/" + piece.file));
    const auto entry = file->entries().find(piece.key);
    if (entry == file->entries().end())
      return absl::DataLossError(absl::StrCat(folder_, "/", piece.file, ": tensor '", name, "' is missing"));
    const Tensor view = file->View(entry->second);
    if (view.size() != piece.end - piece.begin ||
        XXH3_64bits(view.raw(), static_cast<size_t>(view.bytes())) != piece.checksum) {
      return absl::DataLossError(absl::StrCat(folder_, "/", piece.file, ": tensor '", name,
                                              "' does not match its checksum: the file is damaged"));
    }
    CopyOverlap(view, {{size}, {piece.begin}, {piece.end - piece.begin}}, out, WholeBox({size}));
  }
  return out.View(at->second.shape);
}

bool CheckpointReader::has_averages() const {
  const auto at = manifest_.integers.find(kAverageUpdates);
  return at != manifest_.integers.end() && at->second > 0;
}

absl::StatusOr<Tensor> CheckpointReader::ReadWeight(const std::string& name, Weights which) const {
  return Read(which == Weights::kAverages && has_averages() ? AverageName(name) : name);
}

absl::StatusOr<std::string> InspectCheckpoint(const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(path));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader reader, CheckpointReader::Open(folder));
  std::string text =
      absl::StrFormat("%s: step %d, written by %d ranks\n%-48s %-18s %12s %12s\n", folder, reader.manifest().step,
                      reader.manifest().ranks, "tensor", "shape", "norm", "largest");
  int64_t elements = 0;
  for (const auto& [name, tensor] : reader.manifest().tensors) {
    SHOAL_ASSIGN_OR_RETURN(const Tensor values, reader.Read(name));
    double squares = 0, most = 0;
    for (const float v : values.span<float>()) {
      squares += static_cast<double>(v) * static_cast<double>(v);
      most = std::max(most, std::abs(static_cast<double>(v)));
    }
    if (!absl::StrContains(name, "/")) elements += values.size();
    absl::StrAppendFormat(&text, "%-48s %-18s %12.5g %12.5g\n", name, ShapeString(tensor.shape), std::sqrt(squares),
                          most);
  }
  absl::StrAppendFormat(&text, "%d parameters\n", elements);
  for (const auto& [name, value] : reader.manifest().integers) absl::StrAppendFormat(&text, "%s = %d\n", name, value);
  for (const auto& [name, value] : reader.manifest().reals) absl::StrAppendFormat(&text, "%s = %g\n", name, value);
  return text;
}

absl::StatusOr<std::string> DiffCheckpoints(const std::string& a, const std::string& b) {
  SHOAL_ASSIGN_OR_RETURN(const std::string left_folder, FindCheckpoint(a));
  SHOAL_ASSIGN_OR_RETURN(const std::string right_folder, FindCheckpoint(b));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader left, CheckpointReader::Open(left_folder));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader right, CheckpointReader::Open(right_folder));
  std::set<std::string> names;
  for (const auto& [name, tensor] : left.manifest().tensors) names.insert(name);
  for (const auto& [name, tensor] : right.manifest().tensors) names.insert(name);
  std::string text;
  int same = 0;
  for (const std::string& name : names) {
    const auto l = left.manifest().tensors.find(name), r = right.manifest().tensors.find(name);
    if (l == left.manifest().tensors.end() || r == right.manifest().tensors.end()) {
      absl::StrAppendFormat(&text, "%-48s only in %s\n", name,
                            l == left.manifest().tensors.end() ? right_folder : left_folder);
      continue;
    }
    if (l->second.shape != r->second.shape) {
      absl::StrAppendFormat(&text, "%-48s shapes %s and %s\n", name, ShapeString(l->second.shape),
                            ShapeString(r->second.shape));
      continue;
    }
    SHOAL_ASSIGN_OR_RETURN(const Tensor x, left.Read(name));
    SHOAL_ASSIGN_OR_RETURN(const Tensor y, right.Read(name));
    double most = 0, difference = 0, norm = 0;
    for (int64_t i = 0; i < x.size(); ++i) {
      const double u = static_cast<double>(x.data<float>()[i]), v = static_cast<double>(y.data<float>()[i]);
      most = std::max(most, std::abs(u - v));
      difference += (u - v) * (u - v);
      norm += u * u;
    }
    if (most == 0)
      ++same;
    else
      absl::StrAppendFormat(&text, "%-48s largest difference %.3g, relative %.3g\n", name, most,
                            std::sqrt(difference / std::max(norm, 1e-300)));
  }
  absl::StrAppendFormat(&text, "%d of %d tensors are equal bit for bit\n", same, names.size());
  return text;
}

absl::Status ExportWeights(const std::string& path, const std::string& out_file, Weights which) {
  SHOAL_ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(path));
  SHOAL_ASSIGN_OR_RETURN(const CheckpointReader reader, CheckpointReader::Open(folder));
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : reader.manifest().tensors) {
    if (absl::StrContains(name, "/")) continue;
    SHOAL_ASSIGN_OR_RETURN(Tensor values, reader.ReadWeight(name, which));
    tensors.push_back({name, std::move(values)});
  }
  SHOAL_RETURN_IF_ERROR(WriteSafetensors(PosixFiles(), out_file + ".tmp", tensors));
  return PosixFiles().Rename(out_file + ".tmp", out_file);
}

}  // namespace shoal
