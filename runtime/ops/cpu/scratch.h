// Per-thread scratch of kernels: grows to the largest request and stays, so the steady state allocates nothing.
#pragma once

#include <cstdint>

namespace shoal::cpu {

// `count` elements, 64-byte aligned, not initialised; valid until the thread's next call with the same Slot. Slots
// separate callers that nest.
enum class ScratchSlot { kTile0, kTile1, kTile2, kTile3, kTile4, kTile5, kTile6, kRow0, kRow1, kRow2, kOneDnn, kCount };
void* ScratchBytes(ScratchSlot slot, int64_t bytes);
template <class T>
T* Scratch(ScratchSlot slot, int64_t count) {
  return static_cast<T*>(ScratchBytes(slot, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace shoal::cpu
