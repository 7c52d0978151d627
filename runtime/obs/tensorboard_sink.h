// TensorBoard event files: TFRecord framing (masked CRC-32C) around Event messages with scalar summaries.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/obs/step_record.h"

namespace shoal {

// CRC-32C (Castagnoli), as TFRecord masks it.
uint32_t Crc32c(absl::string_view data);
uint32_t MaskedCrc32c(absl::string_view data);

class TensorBoardSink {
 public:
  // A new file in `folder`, as every start of a run makes one; TensorBoard joins them by step.
  static absl::StatusOr<std::unique_ptr<TensorBoardSink>> Open(const std::string& folder);
  ~TensorBoardSink();
  absl::Status Write(const StepRecord& record);

 private:
  TensorBoardSink(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  absl::Status Append(const std::string& event);
  std::string path_;
  std::FILE* file_;
};

// The newest step's values in Prometheus text format, for node_exporter's textfile collector. Replaced by a rename, so
// a reader sees all or nothing; not synced.
absl::Status WritePrometheus(const std::string& path, const std::string& job, const StepRecord& record);

}  // namespace shoal
