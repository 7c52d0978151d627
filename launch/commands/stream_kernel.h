// The kernel that optimizers are measured against: it does nothing but move memory.
#pragma once

#include <cstdint>

namespace shoal {

// Reads four streams and writes three of them in place, as AdamW does: 28 bytes an element. Values stay bounded.
void StreamRun(const float* a, int64_t n, float* b, float* c, float* d);

}  // namespace shoal
