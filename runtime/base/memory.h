// Memory of this process and its machine.
#pragma once

#include <cstdint>

namespace shoal {

// Anonymous + shared resident memory of this process now, from /proc/self/status; 0 where there is none. File pages do
// not count: they are the system's to take back.
int64_t ResidentBytes();

// The most that ResidentBytes() has been so far, from the kernel's own high-water mark, so between two samples too. The
// mark counts file pages; those resident now are taken off, which is exact once programs and libraries are loaded.
int64_t PeakResidentBytes();

// What processes here may still take: MemAvailable, or what the control group's limit leaves if that is less. 0:
// unknown.
int64_t AvailableBytes();

}  // namespace shoal
