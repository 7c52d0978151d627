#include "comm/flight_recorder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr int64_t kEntries = 1024;
constexpr char kMagic[8] = {'S', 'H', 'O', 'A', 'L', 'F', 'R', '1'};

int64_t Now() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void CopyText(absl::string_view from, char* to, size_t size) {
  const size_t n = std::min(from.size(), size - 1);
  std::memcpy(to, from.data(), n);
  std::memset(to + n, 0, size - n);
}

absl::string_view StateName(FlightState state) {
  switch (state) {
    case FlightState::kEntered:
      return "waiting";
    case FlightState::kDone:
      return "done";
    case FlightState::kFailed:
      return "failed";
    case FlightState::kHeld:
      return "not begun";
  }
  return "?";
}

}  // namespace

struct FlightRecorder::File {
  char magic[8];
  int32_t rank, size;
  int64_t pid;
  std::atomic<int64_t> count;
  FlightEntry entries[kEntries];
};

absl::StatusOr<std::unique_ptr<FlightRecorder>> FlightRecorder::Open(const std::string& path, int rank, int size) {
  std::error_code made;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), made);  // open() says what is wrong
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0 || ::ftruncate(fd, sizeof(File)) != 0) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    return EnvironmentError(absl::StrCat("flight record ", path, ": ", std::strerror(error)));
  }
  void* memory = ::mmap(nullptr, sizeof(File), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  if (memory == MAP_FAILED) return EnvironmentError(absl::StrCat("flight record ", path, ": ", std::strerror(errno)));
  File* file = static_cast<File*>(memory);
  std::memcpy(file->magic, kMagic, sizeof(kMagic));
  file->rank = rank;
  file->size = size;
  file->pid = ::getpid();
  return std::unique_ptr<FlightRecorder>(new FlightRecorder(file));
}

FlightRecorder::~FlightRecorder() { ::munmap(file_, sizeof(File)); }

int64_t FlightRecorder::Enter(absl::string_view group, int64_t sequence, absl::string_view op, absl::string_view tag,
                              int64_t bytes, FlightState state) {
  const int64_t order = file_->count.load(std::memory_order_relaxed) + 1;
  FlightEntry& entry = file_->entries[(order - 1) % kEntries];
  entry.sequence = sequence;
  entry.order = order;
  entry.bytes = bytes;
  entry.entered_ns = Now();
  entry.left_ns = 0;
  entry.state = state;
  CopyText(group, entry.group, sizeof(entry.group));
  CopyText(op, entry.op, sizeof(entry.op));
  CopyText(tag, entry.tag, sizeof(entry.tag));
  file_->count.store(order, std::memory_order_release);
  return order;
}

void FlightRecorder::Begin(int64_t order) {
  FlightEntry& entry = file_->entries[(order - 1) % kEntries];
  if (entry.order == order) entry.state = FlightState::kEntered;
}

void FlightRecorder::Leave(int64_t order, FlightState state) {
  FlightEntry& entry = file_->entries[(order - 1) % kEntries];
  if (entry.order != order) return;  // overwritten by a later one
  entry.left_ns = Now();
  entry.state = state;
}

absl::StatusOr<FlightRecord> ReadFlightRecord(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  constexpr size_t kHeader = 8 + 4 + 4 + 8 + 8;
  if (bytes.size() < kHeader + kEntries * sizeof(FlightEntry) || std::memcmp(bytes.data(), kMagic, 8) != 0) {
    return absl::DataLossError(absl::StrCat(path, ": not a flight record (", bytes.size(), " bytes)"));
  }
  FlightRecord record;
  int32_t numbers[2];
  int64_t count = 0;
  std::memcpy(numbers, bytes.data() + 8, 8);
  std::memcpy(&record.pid, bytes.data() + 16, 8);
  std::memcpy(&count, bytes.data() + 24, 8);
  record.rank = numbers[0];
  record.size = numbers[1];
  for (int64_t order = std::max<int64_t>(1, count - kEntries + 1); order <= count; ++order) {
    FlightEntry entry;
    std::memcpy(&entry, bytes.data() + kHeader + static_cast<size_t>((order - 1) % kEntries) * sizeof(FlightEntry),
                sizeof(FlightEntry));
    if (entry.order == order) record.entries.push_back(entry);
  }
  return record;
}

absl::StatusOr<std::string> WhyHang(const std::string& folder) {
  std::map<int, FlightRecord> records;
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(folder, error)) {
    if (item.path().extension() != ".ring") continue;
    SHOAL_ASSIGN_OR_RETURN(FlightRecord record, ReadFlightRecord(item.path().string()));
    records[record.rank] = std::move(record);
  }
  if (records.empty())
    return absl::NotFoundError(absl::StrCat(folder, ": no flight records (rank-N.ring) here; name a run directory"));
  const int size = records.begin()->second.size;
  // Of each communicator, the oldest operation that some rank entered and did not finish; then who is not in it.
  std::map<std::string, std::map<int, const FlightEntry*>> last;
  std::map<std::string, int64_t> stuck;
  for (const auto& [rank, record] : records) {
    for (const FlightEntry& entry : record.entries) {
      last[entry.group][rank] = &entry;
      if (entry.state == FlightState::kDone) continue;
      auto [at, added] = stuck.emplace(entry.group, entry.sequence);
      if (!added) at->second = std::min(at->second, entry.sequence);
    }
  }
  std::string text = absl::StrCat(records.size(), " of ", size, " ranks left a flight record\n");
  if (stuck.empty()) absl::StrAppend(&text, "every recorded operation is done: nothing hangs in communication\n");
  for (const auto& [group, sequence] : stuck) {
    std::vector<std::string> inside, culprits;
    std::vector<int> held;
    for (int rank = 0; rank < size; ++rank) {
      const FlightEntry* found = nullptr;
      const auto record = records.find(rank);
      if (record != records.end()) {
        for (const FlightEntry& entry : record->second.entries) {
          if (group == entry.group && entry.sequence == sequence) found = &entry;
        }
      }
      if (found != nullptr) {
        inside.push_back(absl::StrFormat("  rank %d: %s '%s', %d bytes, %s", rank, found->op, found->tag, found->bytes,
                                         StateName(found->state)));
        if (found->state == FlightState::kHeld) held.push_back(rank);
        continue;
      }
      std::string where = "left no record";
      if (record != records.end()) {
        const auto at = last[group].find(rank);
        where = at == last[group].end() ? "entered nothing on this communicator"
                                        : absl::StrFormat("its last there is #%d %s '%s'", at->second->sequence,
                                                          at->second->op, at->second->tag);
      }
      culprits.push_back(absl::StrCat("rank ", rank, " (", where, ")"));
    }
    absl::StrAppend(&text, "communicator ", group, ", operation #", sequence, ":\n", absl::StrJoin(inside, "\n"), "\n");
    if (!culprits.empty()) absl::StrAppend(&text, "  never entered: ", absl::StrJoin(culprits, ", "), "\n");
    if (!held.empty())
      absl::StrAppend(&text, "  held up by work of its own stream: rank ", absl::StrJoin(held, ", "), "\n");
    if (culprits.empty() && held.empty())
      absl::StrAppend(&text, "  all ranks are in it: a link or a stopped process\n");
  }
  return text;
}

}  // namespace shoal
