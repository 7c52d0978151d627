#include "models/weights_file.h"

#include "absl/strings/str_cat.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/status.h"

namespace shoal {

absl::Status LoadWeightsFile(const std::string& path, const Transformer& model, ThreadPool& pool, DataParallel& dp) {
  SHOAL_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  OpContext ctx{.pool = &pool};
  for (const Param* param : model.params()) {
    const auto at = file->entries().find(param->name);
    if (at == file->entries().end())
      return absl::DataLossError(absl::StrCat(path, ": tensor '", param->name, "' is missing; the model needs it"));
    if (at->second.shape != param->shape) {
      return absl::DataLossError(absl::StrCat(path, ": tensor '", param->name, "' has shape ",
                                              ShapeString(at->second.shape), ", the model's has ",
                                              ShapeString(param->shape)));
    }
    ops::Copy(ctx, file->View(at->second), dp.Weight(*param));
    for (OwnedPiece& piece : dp.pieces()) {
      if (piece.param == param)
        ops::Copy(ctx, file->View(at->second).View({param->size()}).Rows(piece.begin, piece.end), piece.master);
    }
  }
  for (const auto& [name, entry] : file->entries()) {
    bool known = false;
    for (const Param* param : model.params()) known = known || param->name == name;
    if (!known)
      return absl::DataLossError(absl::StrCat(path, ": tensor '", name, "' belongs to no parameter of this model"));
  }
  return absl::OkStatus();
}

}  // namespace shoal
