#include "runtime/obs/trace.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr char kHead[] = "[\n";
constexpr char kTail[] = "\n]\n";

std::string RankPath(const std::string& run_dir, int rank) {
  return absl::StrCat(run_dir, "/trace/rank-", rank, ".json");
}

std::string Quoted(absl::string_view text) { return nlohmann::json(std::string(text)).dump(); }

}  // namespace

Trace::Trace(int rank, const std::string& host, double clock_offset) : rank_(rank), offset_(clock_offset) {
  events_ = absl::StrFormat(R"({"ph":"M","name":"process_name","pid":%d,"args":{"name":%s}})"
                            ",\n"
                            R"({"ph":"M","name":"process_sort_index","pid":%d,"args":{"sort_index":%d}})"
                            ",\n"
                            R"({"ph":"M","name":"thread_name","pid":%d,"tid":1,"args":{"name":"main"}})",
                            rank, Quoted(absl::StrCat("rank ", rank, " (", host, ")")), rank, rank, rank);
}

void Trace::Add(const Span& span) {
  const double begin = (span.start + offset_) * 1e6, duration = span.seconds * 1e6;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (span.track == Span::Track::kMain) {
    absl::StrAppendFormat(&events_, ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":1,\"ts\":%.3f,\"dur\":%.3f,\"name\":%s", rank_,
                          begin, duration, Quoted(span.name));
    if (span.bytes > 0)
      absl::StrAppendFormat(&events_, ",\"args\":{\"flops\":%.0f,\"bytes\":%.0f}", span.flops, span.bytes);
    absl::StrAppend(&events_, "}");
    return;
  }
  const std::string both = absl::StrFormat("\"cat\":\"comm\",\"id\":%d,\"pid\":%d,\"tid\":2,\"name\":%s", next_id_++,
                                           rank_, Quoted(span.note.empty() ? span.name : span.note));
  absl::StrAppendFormat(
      &events_, ",\n{\"ph\":\"b\",%s,\"ts\":%.3f,\"args\":{\"op\":%s,\"bytes\":%.0f}},\n{\"ph\":\"e\",%s,\"ts\":%.3f}",
      both, begin, Quoted(span.name), span.bytes, both, begin + duration);
}

absl::Status Trace::Write(FileSystem& files, const std::string& run_dir) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  SHOAL_RETURN_IF_ERROR(files.MakeDirs(run_dir + "/trace"));
  return WriteFileAtomically(files, RankPath(run_dir, rank_), absl::StrCat(kHead, events_, kTail));
}

absl::Status JoinTraces(FileSystem& files, const std::string& run_dir, int ranks) {
  std::string all = kHead;
  for (int rank = 0; rank < ranks; ++rank) {
    SHOAL_ASSIGN_OR_RETURN(const std::string text, files.Read(RankPath(run_dir, rank)));
    constexpr size_t kAround = sizeof(kHead) + sizeof(kTail) - 2;
    if (text.size() < kAround) return absl::DataLossError(RankPath(run_dir, rank) + " is truncated");
    absl::StrAppend(&all, rank == 0 ? "" : ",\n", text.substr(sizeof(kHead) - 1, text.size() - kAround));
  }
  return WriteFileAtomically(files, run_dir + "/trace/all.json", all + kTail);
}

}  // namespace shoal
