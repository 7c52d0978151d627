#include "runtime/base/memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace shoal {
namespace {

// The number that is all of a file; -1 when it is none ("max") or not there.
int64_t NumberIn(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  return in >> value ? value : -1;
}

// A row of /proc/self/status that is in kB; 0 when it is not there.
int64_t StatusBytes(const std::string& row) {
  std::ifstream in("/proc/self/status");
  for (std::string key; in >> key;) {
    int64_t kib = 0;
    if (key == row && in >> kib) return kib * 1024;
    in.ignore(256, '\n');
  }
  return 0;
}

}  // namespace

int64_t ResidentBytes() { return StatusBytes("RssAnon:") + StatusBytes("RssShmem:"); }

int64_t PeakResidentBytes() { return std::max(ResidentBytes(), StatusBytes("VmHWM:") - StatusBytes("RssFile:")); }

int64_t AvailableBytes() {
  int64_t available = 0;
  std::ifstream in("/proc/meminfo");
  for (std::string key; in >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && in >> kib) available = kib * 1024;
    in.ignore(256, '\n');
  }
  const int64_t limit = NumberIn("/sys/fs/cgroup/memory.max"), used = NumberIn("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(1, limit - used));
  return available;
}

}  // namespace shoal
