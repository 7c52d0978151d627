#include "runtime/obs/metrics_log.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path, int64_t resumed_step) {
  std::string kept;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"].is_number() && record["step"] <= resumed_step)
      kept += line + "\n";
  }
  in.close();
  SHOAL_RETURN_IF_ERROR(WriteFileAtomically(PosixFiles(), path, kept));
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) return EnvironmentError(absl::StrCat(path, ": ", std::strerror(errno)));
  return std::unique_ptr<MetricsLog>(new MetricsLog(path, file));
}

MetricsLog::~MetricsLog() { std::fclose(file_); }

absl::Status MetricsLog::Write(const StepRecord& record) {
  const std::string line = StepJson(record) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0)
    return absl::OkStatus();
  return EnvironmentError(absl::StrCat(path_, ": ", std::strerror(errno)));
}

}  // namespace shoal
